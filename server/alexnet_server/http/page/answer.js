// Shows an answer, or says why there is none.

import { $, element, names, percent, words } from "./dom.js";

const RETRYABLE = new Set([429, 503, 504]);

export function busy(is) {
  $("labels").setAttribute("aria-busy", String(is));
  if (!is) return;
  $("problem").hidden = true;
  $("labels").hidden = false;
  $("status").textContent = "Looking at the photo…";
}

// `explain(prediction)` is called when somebody asks why
export function present({ answer, serverTiming, elapsedMs }, model, explain) {
  $("problem").hidden = true;
  $("labels").hidden = $("actions").hidden = $("timings").hidden = false;
  $("labels").classList.remove("waiting");
  $("labels").replaceChildren(...answer.predictions.map((prediction) => labelRow(prediction, explain)));
  const facts = [answer.model, model?.precision, ...timings(serverTiming), `round trip ${Math.round(elapsedMs)} ms`];
  $("facts").textContent = facts.filter(Boolean).map((fact) => fact.replaceAll(" ", "\u00a0")).join("\u00a0· ");
  const [best, ...others] = answer.predictions.map(({ label, score }) => `${names(label)[0]}, ${percent(score)}`);
  $("status").textContent = `${best}. Then ${others.join("; ")}.`;
}

function labelRow(prediction, explain) {
  const { label, score, wnid } = prediction;
  const [first, others] = names(label);
  const fill = element("span");
  requestAnimationFrame(() => requestAnimationFrame(() => { fill.style.width = `${100 * score}%`; }));
  const ask = element("button", { type: "button", className: "why", textContent: "Why?", ariaLabel: `Why ${first}?` });
  ask.addEventListener("click", () => explain(prediction, ask));
  return element("li", { title: wnid },
    element("span", { className: "name" }, first, element("span", { className: "others", textContent: others && ` also: ${others}` })),
    element("span", { className: "score" }, percent(score)), ask,
    element("span", { className: "bar", ariaHidden: "true" }, fill));
}

// `Server-Timing: decode;dur=4.1, queue;dur=0.2, engine;dur=21.7` -> ["decode 4 ms", ...]
function timings(header) {
  return [...(header ?? "").matchAll(/([\w-]+)[^,]*?;\s*dur=([\d.]+)/g)]
    .map(([, stage, ms]) => `${stage} ${ms >= 10 ? Math.round(ms) : Number(ms).toFixed(1)} ms`);
}

export function complain(title, detail, { requestId = "", retry = false, key = false } = {}) {
  $("problem-title").textContent = title;
  $("problem-detail").replaceChildren(...words(detail));
  $("problem-request").textContent = requestId && `Request ${requestId}`;
  $("retry").hidden = !retry;
  $("key-form").hidden = !key;
  $("problem").hidden = false;
  $("labels").hidden = $("actions").hidden = $("timings").hidden = true;
  $("facts").textContent = $("status").textContent = "";
}

// The server's problem document as `complain`'s arguments
export function refusal(problem, response) {
  const wait = response.headers.get("Retry-After");
  const detail = problem.detail ?? "The server gave no reason.";
  return [problem.title ?? "That did not work", wait ? `${detail} Try again in ${wait} s.` : detail, {
    requestId: response.status >= 500 ? response.headers.get("X-Request-Id") : "",
    retry: RETRYABLE.has(response.status),
    key: response.status === 401,
  }];
}

export const UNREACHABLE = ["The server cannot be reached", "Check that it is running and that you are online, then try again.", { retry: true }];
