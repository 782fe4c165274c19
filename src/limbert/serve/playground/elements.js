// DOM elements and formatted numbers. Text is inserted as text only, so that no output can become part of the page.

export const byId = (id) => document.getElementById(id);

export function make(tag, { text, kind, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== undefined) { element.textContent = text; }
  if (kind) { element.className = kind; }
  for (const [name, value] of Object.entries(attributes)) { element.setAttribute(name, value); }
  element.append(...children);
  return element;
}

export function bar(fraction) {
  const inner = make("i");
  inner.style.width = `${100 * Math.min(1, Math.max(0, fraction))}%`;
  return make("span", { kind: "bar", "aria-hidden": "true" }, inner);
}

export function showError(element, error) {
  element.hidden = !error;
  element.replaceChildren();
  if (!error) { return; }
  element.append(error.message);
  if (error.detail) { element.append(make("small", { text: error.detail })); }
}

const SPACE = "\u00a0"; // keeps a number and its unit on one line

export const percent = (fraction) => `${(100 * fraction).toFixed(1)}${SPACE}%`;
export const plain = (value) => String(Number(value.toFixed(3)));

export function milliseconds(value) {
  if (value === null || value === undefined) { return "none"; }
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)}${SPACE}ms`;
}

export function count(value) {
  for (const [unit, factor] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    const digits = value >= 100 * factor ? 0 : value >= 10 * factor ? 1 : 2;
    if (value >= factor) { return `${(value / factor).toFixed(digits)}${SPACE}${unit}`; }
  }
  return String(value);
}

// Quality of a variant, such as "accuracy 88.4, validation".
export function quality(variant) {
  return `${variant.metric} ${(100 * variant.quality).toFixed(1)}${variant.data === "validation" ? ", validation" : ""}`;
}

export const rate = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
export const whole = (value) => value.toLocaleString("en");

// A line through the last values, from 0 to the largest.
export function sparkline(values, length) {
  const top = Math.max(...values, 0) || 1;
  const points = values.map((value, index) => `${length - values.length + index},${30 - 28 * (value / top)}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const add = (tag, attributes) => {
    const element = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) { element.setAttribute(name, value); }
    svg.append(element);
  };
  svg.setAttribute("viewBox", `0 0 ${length - 1} 32`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  add("line", { x1: 0, x2: length - 1, y1: 31, y2: 31 });
  add("polyline", { points: points.join(" ") });
  return svg;
}
