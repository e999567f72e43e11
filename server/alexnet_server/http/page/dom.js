// Small things that every part of the page needs.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function percent(score) {
  const value = 100 * score;
  return value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}

// "tabby, tabby cat" -> ["tabby", "tabby cat"]
export function names(label) {
  const [first, ...others] = label.split(", ");
  return [first, others.join(", ")];
}

// "convert it with `sips …`" -> text and <code>
export function words(detail) {
  return detail.split("`").map((part, index) => (index % 2 ? element("code", { textContent: part }) : part));
}
