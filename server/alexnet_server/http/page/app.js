// Photos in, answers out: take photos, show one, send each to the server, show its answer or why there is none.

import { busy, complain, present, refusal, UNREACHABLE } from "./answer.js";
import { showCrops } from "./crops.js";
import { $, element, names, percent } from "./dom.js";
import { onLearned } from "./learned.js";
import { headers, postPhoto } from "./server.js";
import { explainView, offerViews, view, VIEWS } from "./views.js";
import { clearWhy, drawWhy, why } from "./why.js";

const MODELS_RETRY_MS = 2000;
const AT_ONCE = 4; // photos of a list that are sent at a time
const LESSONS = {
  "cat.jpg": "A hard photo, taken from very close: this network names a cat, but gives it one chance in four, and a dog comes next. Compare the views: they agree on the cat, not on what else it could be.",
  "rocket.jpg": "The shipped model never learned what a rocket is. It names the thing it knows that looks most like one.",
};

// Photos: {file, name, note, url, answer | problem (complain's arguments)}; `chosen` is the one on show.
const state = { photos: [], chosen: null, models: [], request: null, more: null };

// -- Taking photos ---------------------------------------------------------------------------------------------

function take(files, lesson = "") {
  if (!files.length) return;
  for (const { url } of state.photos) URL.revokeObjectURL(url);
  state.photos = [...files].map((file) => ({ file, name: file.name || "Pasted photo", note: "", url: URL.createObjectURL(file) }));
  $("lesson").textContent = lesson;
  $("lesson").hidden = !lesson;
  choose(state.photos[0]);
  classifyAll();
}

function choose(photo) {
  state.chosen = photo;
  const image = $("image");
  image.alt = `Your photo${photo.file.name ? `, ${photo.file.name}` : ""}`;
  $("frame").hidden = $("seen").hidden = true; // until the browser has decoded it; some formats it cannot
  image.src = photo.url;
  $("invitation").hidden = true;
  $("figure").hidden = false;
  $("drop").classList.add("full");
  document.body.classList.add("asked");
  forget();
  caption();
  list();
}

// What is shown with an answer goes away with it
function forget() {
  state.more?.abort();
  clearWhy();
  $("crops-box").hidden = true;
}

function caption() {
  const shown = !$("frame").hidden && !state.chosen.problem;
  $("caption").textContent = `${state.chosen.name}. ${state.chosen.note}${shown ? "The network sees what is inside the square." : ""}`;
}

function outline() {
  const { naturalWidth: width, naturalHeight: height } = $("image");
  if (!width || !height) return;
  const square = Math.min(width, height);
  size($("seen"), square * VIEWS[view()].part, width, height);
  size($("heat"), square, width, height);
  $("frame").hidden = $("seen").hidden = false;
  caption();
}

function size(box, side, width, height) {
  box.style.width = `${(100 * side) / width}%`;
  box.style.height = `${(100 * side) / height}%`;
}

function list() {
  $("photos").hidden = state.photos.length < 2;
  $("photos").replaceChildren(...(state.photos.length < 2 ? [] : state.photos.map(listed)));
}

function listed(photo) {
  const best = photo.answer?.answer.predictions[0];
  const said = best ? `${names(best.label)[0]}, ${percent(best.score)}` : photo.problem?.[0] ?? "…";
  const button = element("button", { type: "button", className: "listed" },
    element("img", { src: photo.url, alt: "" }),
    element("span", { className: "quiet", textContent: photo.name }),
    element("span", { className: "name", textContent: said }));
  button.setAttribute("aria-pressed", String(photo === state.chosen));
  button.addEventListener("click", () => {
    choose(photo);
    show();
    [...$("photos").querySelectorAll("button")][state.photos.indexOf(photo)].focus();
  });
  return element("li", {}, button);
}

function onDrop(event) {
  event.preventDefault();
  $("drop").classList.remove("over");
  const { files } = event.dataTransfer;
  if (files.length) take(files);
  else complain("Nothing to look at", "That was not a file. Save the picture first, then drop the file here.");
}

function onPaste(event) {
  if (event.target.id === "key") return;
  const { files } = event.clipboardData;
  if (files.length) take(files);
  else complain("Nothing to look at", "There is no picture on the clipboard. Copy a picture, then paste again.");
}

async function takeExample({ currentTarget }) {
  const { name } = currentTarget.dataset;
  try {
    const response = await fetch(`page/${name}`);
    if (!response.ok) throw new Error(response.statusText);
    take([new File([await response.blob()], name, { type: "image/jpeg" })], LESSONS[name]);
  } catch {
    complain(...UNREACHABLE.slice(0, 2));
  }
}

// -- Asking the server -----------------------------------------------------------------------------------------

async function classifyAll() {
  state.request?.abort();
  const request = (state.request = new AbortController());
  const waiting = [...state.photos];
  for (const photo of waiting) delete photo.answer, delete photo.problem;
  busy(true);
  const worker = async () => {
    for (let photo = waiting.shift(); photo && !request.signal.aborted; photo = waiting.shift()) {
      await classify(photo, request.signal);
      if (request.signal.aborted) return;
      list();
      if (photo === state.chosen) show();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

async function classify(photo, signal) {
  const start = performance.now();
  try {
    const { answer, response } = await postPhoto("classify", { views: view(), top_k: "5" }, photo, signal);
    if (response.ok) photo.answer = { answer, serverTiming: response.headers.get("Server-Timing"), elapsedMs: performance.now() - start };
    else photo.problem = refusal(answer, response);
  } catch (error) {
    if (error.name !== "AbortError") photo.problem = UNREACHABLE; // else a newer photo or view took over
  }
}

// The chosen photo's answer, its problem, or that it is still being classified
function show() {
  const { answer, problem } = state.chosen;
  busy(!answer && !problem);
  if (problem) complain(...problem);
  if (answer) present(answer, state.models.find(({ name }) => name === answer.answer.model), explain);
  $("ten-crops").hidden = !answer || view() !== "ten" || !$("image").naturalWidth;
  caption();
}

// A further question about an answer: one at a time, and dropped when there is a newer photo
async function beside(button, note, ask) {
  forget();
  const more = (state.more = new AbortController());
  button.setAttribute("aria-busy", "true");
  $("why-note").textContent = note;
  $("why-note").hidden = false;
  try {
    const { answer, response } = await ask(more.signal);
    if (more.signal.aborted) return null;
    if (response.ok) return answer;
    $("why-note").textContent = refusal(answer, response)[1];
  } catch (error) {
    if (error.name !== "AbortError") $("why-note").textContent = UNREACHABLE[1];
  } finally {
    button.removeAttribute("aria-busy");
  }
  return null;
}

async function explain(prediction, button) {
  const note = `Covering the photo place by place to see what made “${names(prediction.label)[0]}”…`;
  const answer = await beside(button, note, (signal) => why(state.chosen, prediction, view(), signal));
  if (answer) drawWhy(answer);
}

async function onTenCrops({ currentTarget }) {
  const [average] = state.chosen.answer.answer.predictions;
  const answer = await beside(currentTarget, "Classifying each crop…", (signal) => showCrops($("image"), average, signal));
  if (answer) $("why-note").hidden = true;
}

async function copyCurl({ currentTarget }) {
  const query = view() === "center" ? "" : `?views=${view()}`;
  const name = state.chosen.file.name || "photo.jpg";
  await navigator.clipboard.writeText(`curl -F 'image=@${name.replaceAll("'", "'\\''")}' '${new URL("classify", document.baseURI)}${query}'`);
  currentTarget.textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy as curl"; }, 1500);
}

async function loadModels() {
  try {
    const response = await fetch("models", { headers: headers() });
    if (response.ok) {
      state.models = (await response.json()).models;
      offerViews(state.models);
      introduce();
    } else if (response.status === 401) {
      complain(...refusal(await response.json(), response));
      return; // until there is a key, see useKey
    }
  } catch {
    // The server is starting or gone; the next photo will show which.
  }
  if (!state.models.length) setTimeout(loadModels, MODELS_RETRY_MS);
}

// What it knows, how often it is right and its licence, from the model card
function introduce() {
  const [model] = state.models;
  if (!model?.classes) return;
  const measured = model.accuracy?.find?.(({ set, precision }) => set === "validation" && precision === model.precision);
  const right = measured ? ` and is often wrong: its first label is right for ${Math.round(100 * measured.top1)} out of 100 test pictures` : "";
  $("knows").textContent = `It knows ${model.classes.toLocaleString("en")} things${right}.`;
  $("licence").textContent = model.licence ? `Licence of the model: ${model.licence}` : "";
}

function onView() {
  explainView();
  if (!state.chosen) return;
  forget();
  outline();
  classifyAll();
}

function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("problem").hidden = true;
  $("labels").hidden = false;
  loadModels();
  if (state.chosen) classifyAll();
}

// -- Wiring ----------------------------------------------------------------------------------------------------

for (const id of ["file", "camera"]) {
  $(id).addEventListener("change", ({ target }) => {
    take([...target.files]);
    target.value = ""; // so that the same file may be chosen again
  });
}
for (const button of document.querySelectorAll(".example")) button.addEventListener("click", takeExample);
$("retry").addEventListener("click", classifyAll);
$("key-form").addEventListener("submit", useKey);
$("views").addEventListener("change", onView);
$("image").addEventListener("load", outline);
$("ten-crops").addEventListener("click", onTenCrops);
$("copy").addEventListener("click", copyCurl);
$("learned").addEventListener("toggle", onLearned);
document.addEventListener("paste", onPaste);
document.addEventListener("drop", onDrop);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
$("curl").textContent = `curl -F image=@cat.jpg ${new URL("classify", document.baseURI)}`;
loadModels();
