// What the network has learned and how it is built: the kernels of its first layer, and its eight layers.

import { $, element } from "./dom.js";
import { headers } from "./server.js";

let shown = false;

export async function onLearned() {
  if (shown || !$("learned").open) return;
  $("learned-note").textContent = "Reading the network and timing its layers…";
  try {
    const [network, kernels] = await Promise.all([get("network"), get("network/kernels.png")]);
    draw(await network.json());
    $("kernels").src = URL.createObjectURL(await kernels.blob());
    $("kernels-box").hidden = false;
    shown = true;
  } catch (error) {
    $("learned-note").textContent = error.message;
  }
}

async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.detail ?? "The server did not say why.");
}

function draw({ layers, parameters }) {
  const timed = layers.every((layer) => layer.seconds !== null);
  $("layers-time").hidden = $("time-note").hidden = !timed;
  const cells = layers.map((layer) => [
    element("th", { scope: "row", textContent: layer.name }),
    element("td", { textContent: layer.kind }),
    element("td", { textContent: layer.output.join(" x ") }),
    element("td", { className: "number", textContent: layer.parameters.toLocaleString("en") }),
    measured(layers, layer, "multiply_adds", (value) => `${(value / 1e6).toFixed(0)} M`),
    ...(timed ? [measured(layers, layer, "seconds", (value) => `${(1e3 * value).toFixed(2)} ms`)] : []),
  ]);
  $("layers").replaceChildren(...cells.map((row) => element("tr", {}, ...row)));
  $("learned-note").textContent = `${parameters.toLocaleString("en")} parameters in eight layers, five convolutional and three fully connected.`;
  $("layers-box").hidden = false;
}

// A number with a bar as long as its share of the column's largest
function measured(layers, layer, name, words) {
  const fill = element("span");
  fill.style.width = `${(100 * layer[name]) / Math.max(...layers.map((other) => other[name]))}%`;
  return element("td", { className: "number" }, words(layer[name]), element("span", { className: "bar", ariaHidden: "true" }, fill));
}
