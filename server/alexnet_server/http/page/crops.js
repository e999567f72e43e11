// The ten crops of the paper, each with its own label: four corners and the centre, and their mirror images.
// They are cut here and classified as photos of their own, so a score may differ in its second digit from the
// server's own crops, which come from its own resize.

import { $, element, names, percent } from "./dom.js";
import { post } from "./server.js";

const SQUARE = 256;
const CROP = 224;
const EDGE = SQUARE - CROP;
const PLACES = [
  ["top left", 0, 0], ["top right", EDGE, 0], ["bottom left", 0, EDGE], ["bottom right", EDGE, EDGE], ["centre", EDGE / 2, EDGE / 2],
];

export async function showCrops(image, average, signal) {
  const crops = cut(image);
  const body = new FormData();
  for (const part of await Promise.all(crops.map(({ canvas }) => framed(canvas)))) body.append("image", part, "crop.png");
  const { answer, response } = await post("classify/batch", { views: "center", top_k: "1" }, body, signal);
  if (!response.ok) return { answer, response };
  $("crops").replaceChildren(...crops.map((crop, at) => item(crop, answer.results[at])));
  $("crops-average").textContent = `Averaged over the ten: ${names(average.label)[0]}, ${percent(average.score)}.`;
  $("crops-box").hidden = false;
  return { answer, response };
}

function cut(image) {
  const side = Math.min(image.naturalWidth, image.naturalHeight);
  const square = canvasOf(SQUARE);
  square.getContext("2d").drawImage(image, (image.naturalWidth - side) / 2, (image.naturalHeight - side) / 2, side, side, 0, 0, SQUARE, SQUARE);
  return [false, true].flatMap((mirrored) => PLACES.map(([place, x, y]) => {
    const canvas = canvasOf(CROP);
    const context = canvas.getContext("2d");
    if (mirrored) context.setTransform(-1, 0, 0, 1, CROP, 0);
    context.drawImage(square, x, y, CROP, CROP, 0, 0, CROP, CROP);
    return { place: mirrored ? `${place}, mirrored` : place, canvas };
  }));
}

function canvasOf(side) {
  return element("canvas", { width: side, height: side });
}

// The centre model takes the middle 224 pixels of 256: the crop as PNG, with a border that it never sees
function framed(crop) {
  const canvas = new OffscreenCanvas(SQUARE, SQUARE);
  canvas.getContext("2d").drawImage(crop, EDGE / 2, EDGE / 2);
  return canvas.convertToBlob({ type: "image/png" });
}

function item({ place, canvas }, result) {
  const best = result.predictions?.[0];
  canvas.setAttribute("aria-hidden", "true");
  return element("li", {}, canvas,
    element("span", { className: "name", textContent: best ? names(best.label)[0] : result.title }),
    element("span", { className: "quiet", textContent: best ? `${place} · ${percent(best.score)}` : place }));
}
