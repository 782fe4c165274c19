// Elements and numbers for people. Text goes in as text only, so that no answer can become part of the page.

export const by = (id) => document.getElementById(id);

export function make(tag, { text, kind, ...attributes } = {}, ...children) {
  const one = document.createElement(tag);
  if (text !== undefined) { one.textContent = text; }
  if (kind) { one.className = kind; }
  for (const [name, value] of Object.entries(attributes)) { one.setAttribute(name, value); }
  one.append(...children);
  return one;
}

export function bar(share) {
  const inner = make("i");
  inner.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return make("span", { kind: "bar", "aria-hidden": "true" }, inner);
}

export function showProblem(place, problem) {
  place.hidden = !problem;
  place.replaceChildren();
  if (!problem) { return; }
  place.append(problem.message);
  if (problem.detail) { place.append(make("small", { text: problem.detail })); }
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const plain = (value) => String(Number(value.toFixed(3)));

export function milliseconds(value) {
  if (value === null || value === undefined) { return "none yet"; }
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;
}

export function amount(value) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) { return `${(value / size).toFixed(value >= 100 * size ? 0 : value >= 10 * size ? 1 : 2)} ${unit}`; }
  }
  return String(value);
}

// What a size reaches: "accuracy 88.4, validation".
export const quality = (size) => `${size.metric} ${(100 * size.quality).toFixed(1)}${size.data === "validation" ? ", validation" : ""}`;

export const rate = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
export const whole = (value) => value.toLocaleString("en");

// The last values of a meter as a line, from 0 to the largest.
export function spark(values, places) {
  const top = Math.max(...values, 0) || 1;
  const points = values.map((value, at) => `${places - values.length + at},${30 - 28 * (value / top)}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const part = (tag, attributes) => {
    const one = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) { one.setAttribute(name, value); }
    svg.append(one);
  };
  svg.setAttribute("viewBox", `0 0 ${places - 1} 32`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  part("line", { x1: 0, x2: places - 1, y1: 31, y2: 31 });
  part("polyline", { points: points.join(" ") });
  return svg;
}
