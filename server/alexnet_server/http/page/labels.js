// What the loaded model can name, as a page with a search field.

import { $, element, names } from "./dom.js";
import { headers } from "./server.js";

async function load() {
  const response = await fetch("../labels", { headers: headers() }).catch(() => null);
  if (!response?.ok) {
    $("status").textContent = response?.status === 401 ? "Enter your API key on the main page, then come back." : "The server did not answer. Try again.";
    return;
  }
  const { labels } = await response.json();
  $("count").textContent = `${labels.length} things. A photo of anything else still gets one of these labels.`;
  $("list").replaceChildren(...labels.map(({ index, wnid, label }) => {
    const [first, others] = names(label);
    const item = element("li", { value: index, title: wnid }, first);
    if (others) item.append(element("span", { className: "others", textContent: ` also: ${others}` }));
    return item;
  }));
}

$("search").addEventListener("input", ({ target }) => {
  const wanted = target.value.trim().toLowerCase();
  const items = [...$("list").children];
  for (const item of items) item.hidden = !item.textContent.toLowerCase().includes(wanted);
  $("status").textContent = wanted ? `${items.filter((item) => !item.hidden).length} found` : "";
});
load();
