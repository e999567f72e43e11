// The ways the network can look at a photo; each is a model that the server may have loaded.

import { $, element } from "./dom.js";

export const VIEWS = {
  center: { name: "Centre", meaning: "One look at the centre of the photo: the fastest.", part: 224 / 256 },
  ten: { name: "Ten crops", meaning: "The four corners and the centre, each also mirrored, averaged as in the paper.", part: 1 },
  dense: { name: "Dense", meaning: "Ten windows from a single pass over the whole square.", part: 1 },
};

export function view() {
  return document.querySelector("#view-choices input:checked")?.value ?? "center";
}

export function offerViews(models) {
  const modes = Object.keys(VIEWS).filter((mode) => models.some((model) => model.views === mode));
  $("views").hidden = modes.length < 2;
  $("view-choices").replaceChildren(...modes.flatMap((mode, index) => {
    const input = element("input", { type: "radio", name: "views", id: `view-${mode}`, value: mode, className: "unseen" });
    input.checked = index === 0;
    input.setAttribute("aria-describedby", "view-meaning");
    return [input, element("label", { htmlFor: input.id, textContent: VIEWS[mode].name })];
  }));
  explainView();
}

export function explainView() {
  $("view-meaning").textContent = VIEWS[view()].meaning;
}
