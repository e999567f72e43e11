// Why this label: a heat map over the photo. The server covers the photo with a grey square, place by place, and
// says how much of the label's score each place was worth (Zeiler and Fergus 2013).

import { $, names, percent } from "./dom.js";
import { postPhoto } from "./server.js";

const PIXELS = 256; // the square that the network looks at
const FLAT = 0.005; // of the score; a smaller change is no reason

export async function why(photo, prediction, views, signal) {
  const asked = views === "ten" ? "center" : views; // /explain does not take ten views
  return postPhoto("explain", { views: asked, index: String(prediction.index) }, photo, signal);
}

export function drawWhy(answer) {
  const { grid, size, step, score, label } = answer;
  const cells = grid.length + size / step - 1;
  const strength = strengths(grid, cells, size / step);
  const most = Math.max(...strength.flat().map(Math.abs));
  const name = names(label)[0];
  const note = $("why-note");
  if (answer.note) { // why there is no map
    clearWhy();
    note.textContent = `Why “${name}”? ${answer.note}`;
    note.hidden = false;
    return;
  }
  paint(strength, most, (cells * step) / PIXELS);
  const all = grid.flat();
  const mostFor = Math.max(...all);
  const strongest = mostFor < FLAT ? Math.min(...all) : mostFor; // if nothing spoke for it, what spoke against it
  const place = all.indexOf(strongest);
  note.textContent =
    (mostFor < FLAT ? `Nothing in the photo spoke for “${name}”; blue parts spoke against it. ` : `Orange parts spoke for “${name}”, blue ones against it. `) +
    `Covering the strongest place (${where(Math.floor(place / grid.length), place % grid.length, grid.length)}) ` +
    `takes its score from ${percent(score)} to ${percent(Math.max(0, score - strongest))}.`;
  note.hidden = false;
}

export function clearWhy() {
  $("heat").hidden = $("why-note").hidden = true;
}

// Each cell of `step` pixels: the mean of the squares that covered it
function strengths(grid, cells, reach) {
  return Array.from({ length: cells }, (_, row) =>
    Array.from({ length: cells }, (_, column) => {
      const covering = [];
      for (let r = row - reach + 1; r <= row; r++) {
        for (let c = column - reach + 1; c <= column; c++) {
          if (grid[r]?.[c] !== undefined) covering.push(grid[r][c]);
        }
      }
      return covering.reduce((sum, value) => sum + value, 0) / covering.length;
    }));
}

// One pixel a cell, enlarged smoothly over the part of the square that was covered
function paint(strength, most, part) {
  const small = new OffscreenCanvas(strength.length, strength.length);
  const pixels = small.getContext("2d").createImageData(small.width, small.height);
  strength.flat().forEach((value, at) => {
    const colour = value > 0 ? [255, 96, 0] : [0, 110, 255];
    pixels.data.set([...colour, Math.round(215 * Math.abs(value / most))], 4 * at);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const canvas = $("heat");
  canvas.width = canvas.height = PIXELS;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, PIXELS * part, PIXELS * part);
  canvas.hidden = false;
}

function where(row, column, rows) {
  const third = (place, low, middle, high) => [low, middle, high][Math.min(2, Math.floor((3 * place) / rows))];
  const vertical = third(row, "upper", "middle", "lower");
  const horizontal = third(column, "left", "middle", "right");
  if (vertical === horizontal) return "the middle";
  return `${vertical} ${horizontal}`.replace("middle left", "left").replace("middle right", "right").replace(" middle", " part");
}
