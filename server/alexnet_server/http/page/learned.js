// What the network has learned and how it is built: the kernels of its first layer, and its eight layers.

import { $, element } from "./dom.js";
import { headers } from "./server.js";

let shown = false;

export async function onLearned() {
  if (shown || !$("learned").open) return;
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
  throw new Error(problem.detail ?? "The server does not tell.");
}

function draw({ layers, parameters }) {
  const most = Math.max(...layers.map((layer) => layer.multiply_adds));
  $("layers").replaceChildren(...layers.map((layer) => {
    const fill = element("span");
    fill.style.width = `${(100 * layer.multiply_adds) / most}%`;
    return element("tr", {},
      element("th", { scope: "row", textContent: layer.name }),
      element("td", { textContent: layer.kind }),
      element("td", { textContent: layer.output.join(" x ") }),
      element("td", { className: "number", textContent: layer.parameters.toLocaleString("en") }),
      element("td", { className: "number" }, `${(layer.multiply_adds / 1e6).toFixed(0)} M`, element("span", { className: "bar", ariaHidden: "true" }, fill)));
  }));
  $("learned-note").textContent = `${parameters.toLocaleString("en")} parameters in eight layers, five convolutional and three fully connected.`;
  $("layers-box").hidden = false;
}
