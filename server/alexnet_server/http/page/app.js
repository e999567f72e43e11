// One photo at a time: take it, show it, ask the server, show the answer or the reason why there is none.

const VIEWS = {
  center: { name: "Centre", meaning: "One look at the centre square. The fastest.", part: 224 / 256 },
  ten: { name: "Ten crops", meaning: "Four corners and the centre, each mirrored too, averaged: the paper's way.", part: 1 },
  dense: { name: "Dense", meaning: "Ten windows cut from one pass over the whole square.", part: 1 },
};
const MODELS_RETRY_MS = 2000;
const RETRYABLE = new Set([429, 503, 504]);

const $ = (id) => document.getElementById(id);
const state = { photo: null, note: "", models: [], request: null };

// -- Taking a photo --------------------------------------------------------------------------------------------

function take(files, note = "") {
  const [file] = files;
  if (!file) return;
  if (files.length > 1) note = `The first of ${files.length} photos; one at a time. `;
  state.photo = file;
  state.note = note;
  show(file);
  classify();
}

function show(file) {
  const image = $("image");
  URL.revokeObjectURL(image.src);
  image.alt = `Your photo${file.name ? `, ${file.name}` : ""}`;
  $("frame").hidden = $("seen").hidden = true; // until the browser has decoded it; some formats it cannot
  image.src = URL.createObjectURL(file);
  $("invitation").hidden = true;
  $("figure").hidden = false;
  $("drop").classList.add("full");
  document.body.classList.add("asked");
  caption();
}

function caption() {
  const name = state.photo.name || "Pasted photo";
  const square = $("frame").hidden ? "" : "The network sees what is inside the square.";
  $("caption").textContent = `${name}. ${state.note}${square}`;
}

function outline() {
  const { naturalWidth: width, naturalHeight: height } = $("image");
  if (!width || !height) return;
  const side = Math.min(width, height) * VIEWS[view()].part;
  $("seen").style.width = `${(100 * side) / width}%`;
  $("seen").style.height = `${(100 * side) / height}%`;
  $("frame").hidden = $("seen").hidden = false;
  caption();
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

async function takeExample() {
  try {
    const response = await fetch("page/cat.jpg");
    if (!response.ok) throw new Error(response.statusText);
    take([new File([await response.blob()], "cat.jpg", { type: "image/jpeg" })]);
  } catch {
    unreachable();
  }
}

// -- Asking the server -----------------------------------------------------------------------------------------

function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function classify() {
  state.request?.abort();
  const request = (state.request = new AbortController());
  busy(true);
  const body = new FormData();
  body.append("image", state.photo, state.photo.name || "photo");
  const start = performance.now();
  try {
    const query = new URLSearchParams({ views: view(), top_k: "5" });
    const response = await fetch(`classify?${query}`, { method: "POST", body, headers: headers(), signal: request.signal });
    const answer = await response.json();
    if (response.ok) present(answer, response.headers.get("Server-Timing"), performance.now() - start);
    else refuse(answer, response);
  } catch (error) {
    if (error.name === "AbortError") return; // a newer photo or view took over
    unreachable();
  }
  if (state.request === request) busy(false);
}

async function loadModels() {
  try {
    const response = await fetch("models", { headers: headers() });
    if (response.ok) {
      state.models = (await response.json()).models;
      offerViews();
    } else if (response.status === 401) {
      refuse(await response.json(), response);
      return; // until there is a key, see useKey
    }
  } catch {
    // The server is starting or gone; what it is will be said when a photo is sent.
  }
  if (!state.models.length) setTimeout(loadModels, MODELS_RETRY_MS);
}

// -- Views -----------------------------------------------------------------------------------------------------

function view() {
  return document.querySelector("#view-choices input:checked")?.value ?? "center";
}

function offerViews() {
  const modes = Object.keys(VIEWS).filter((mode) => state.models.some((model) => model.views === mode));
  $("views").hidden = modes.length < 2;
  $("view-choices").replaceChildren(...modes.flatMap((mode, index) => {
    const input = element("input", { type: "radio", name: "views", id: `view-${mode}`, value: mode, className: "unseen" });
    input.checked = index === 0;
    input.setAttribute("aria-describedby", "view-meaning");
    return [input, element("label", { htmlFor: input.id, textContent: VIEWS[mode].name })];
  }));
  explainView();
}

function explainView() {
  $("view-meaning").textContent = VIEWS[view()].meaning;
}

function onView() {
  explainView();
  if (!state.photo) return;
  outline();
  classify();
}

// -- Showing the answer ----------------------------------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function busy(is) {
  $("labels").setAttribute("aria-busy", String(is));
  if (!is) return;
  $("problem").hidden = true;
  $("labels").hidden = false;
  $("status").textContent = "Looking at the photo…";
}

function percent(score) {
  const value = 100 * score;
  return value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}

function present(answer, serverTiming, elapsedMs) {
  $("labels").classList.remove("waiting");
  $("labels").replaceChildren(...answer.predictions.map(labelRow));
  const model = state.models.find(({ name }) => name === answer.model);
  const facts = [answer.model, model?.precision, ...timings(serverTiming), `round trip ${Math.round(elapsedMs)} ms`];
  $("facts").textContent = facts.filter(Boolean).map((fact) => fact.replaceAll(" ", "\u00a0")).join("\u00a0· ");
  const [best, ...others] = answer.predictions.map(({ label, score }) => `${names(label)[0]}, ${percent(score)}`);
  $("status").textContent = `${best}. Then ${others.join("; ")}.`;
}

function names(label) {
  const [first, ...others] = label.split(", ");
  return [first, others.join(", ")];
}

function labelRow({ label, score, wnid }) {
  const [first, others] = names(label);
  const fill = element("span");
  requestAnimationFrame(() => requestAnimationFrame(() => { fill.style.width = `${100 * score}%`; }));
  return element("li", { title: wnid },
    element("span", { className: "name" }, first, " ", element("span", { className: "others", textContent: others })),
    element("span", { className: "score", textContent: percent(score) }),
    element("span", { className: "bar", ariaHidden: "true" }, fill));
}

// `Server-Timing: decode;dur=4.1, queue;dur=0.2, engine;dur=21.7` -> ["decode 4 ms", ...]
function timings(header) {
  return [...(header ?? "").matchAll(/([\w-]+)[^,]*?;\s*dur=([\d.]+)/g)]
    .map(([, stage, ms]) => `${stage} ${ms >= 10 ? Math.round(ms) : Number(ms).toFixed(1)} ms`);
}

// -- Showing what went wrong -----------------------------------------------------------------------------------

function complain(title, detail, { requestId = "", retry = false, key = false } = {}) {
  $("problem-title").textContent = title;
  $("problem-detail").replaceChildren(...words(detail));
  $("problem-request").textContent = requestId && `Request ${requestId}`;
  $("retry").hidden = !retry || !state.photo;
  $("key-form").hidden = !key;
  $("problem").hidden = false;
  $("labels").hidden = true;
  $("facts").textContent = $("status").textContent = "";
}

// "convert it with `sips …`" -> text and <code>
function words(detail) {
  return detail.split("`").map((part, index) => (index % 2 ? element("code", { textContent: part }) : part));
}

function refuse(problem, response) {
  const wait = response.headers.get("Retry-After");
  const detail = problem.detail ?? "The server gave no reason.";
  complain(problem.title ?? "That did not work", wait ? `${detail} Try again in ${wait} s.` : detail, {
    requestId: response.status >= 500 ? response.headers.get("X-Request-Id") : "",
    retry: RETRYABLE.has(response.status),
    key: response.status === 401,
  });
}

function unreachable() {
  complain("The server cannot be reached", "Check that it is running and that you are online, then try again.", { retry: true });
}

function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("problem").hidden = true;
  $("labels").hidden = false;
  loadModels();
  if (state.photo) classify();
}

// -- Wiring ----------------------------------------------------------------------------------------------------

for (const id of ["file", "camera"]) {
  $(id).addEventListener("change", ({ target }) => {
    take([...target.files]);
    target.value = ""; // so that the same file may be chosen again
  });
}
$("example").addEventListener("click", takeExample);
$("retry").addEventListener("click", classify);
$("key-form").addEventListener("submit", useKey);
$("views").addEventListener("change", onView);
$("image").addEventListener("load", outline);
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
