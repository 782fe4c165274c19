// Loads the model's description, then connects the form with the predictions.

import { Comparison } from "./comparison.js";
import { byId, make, showError, whole } from "./elements.js";
import { showPrediction } from "./prediction.js";
import { call, setKey } from "./server.js";
import { Status } from "./status.js";
import { VariantChoice } from "./variants.js";

const DEBOUNCE = 200; // ms without a change of the variant before it is requested
const EXAMPLES = [
  ["The staff was friendly and quick.", "Nobody helped us."],
  ["I am still waiting for my new card.", "The card has not arrived."],
  ["Two hours too long, and the ending makes no sense.", "A short and clever film."],
];

let model, choice, comparison, pending, timer, status;

async function start() {
  try {
    model = await call("model");
  } catch (error) {
    askForKey(error);
    return;
  }
  showError(byId("problem"), null);
  byId("key-form").hidden = true;
  if (choice) { status.schedule(0); return; }
  showModel();
  choice = new VariantChoice(model, () => {
    clearTimeout(timer);
    if (!byId("result").hidden || pending) { timer = setTimeout(predict, DEBOUNCE); }
  });
  comparison = new Comparison(model);
  status = new Status(model);
  byId("text").focus();
}

const plural = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;

function showModel() {
  const { task } = model;
  document.title = `${model.name}: Limbert playground`;
  byId("name").textContent = model.name;
  const subnets = model.variants.filter((variant) => variant.kind === "subnet").length;
  const points = model.variants.length - subnets;
  byId("about").textContent = `${task.name || "custom data"}, ${task.task_type}` +
    `${task.labels.length ? ` with ${plural(task.labels.length, "label")}` : ""}: one model with ` +
    plural(subnets, "sub-network") + (points ? ` and ${plural(points, "operating point")}` : "");
  byId("pair-field").hidden = model.pair === "none";
  byId("pair").required = model.pair === "required";
  if (model.pair === "required") { byId("text-label").textContent = "First text"; }
  if (model.pair === "optional") { byId("pair-label").textContent = "Second text, for pairs"; }
  byId("examples").append(...EXAMPLES.map(([text, pair]) => {
    const button = make("button", { type: "button", text });
    button.addEventListener("click", () => {
      byId("text").value = text;
      if (model.pair === "required") { byId("pair").value = pair; }
      comparison.clear();
      predict();
    });
    return button;
  }));
  byId("work").hidden = false;
  byId("comparison").hidden = false;
}

function askForKey(error) {
  byId("key-form").hidden = !error.needsKey;
  showError(byId("problem"), error.needsKey && !byId("key").value ? null : error);
  if (error.needsKey) { byId("key").focus(); }
  if (error.status === 0 || error.status === 503) { setTimeout(start, 2000); }
}

function input() {
  return { text: byId("text").value, pair: model.pair === "none" ? null : byId("pair").value || null };
}

async function predict() {
  clearTimeout(timer);
  if (!byId("form").reportValidity()) { return; }
  if (pending) { pending.abort(); }
  const controller = new AbortController();
  pending = controller;
  byId("result").classList.add("waiting");
  const start = performance.now();
  try {
    const body = { ...input(), parameters: choice.parameters };
    const prediction = await call("predict", { body, signal: controller.signal });
    showError(byId("prediction-problem"), null);
    showPrediction(prediction, model, performance.now() - start);
    choice.follow(prediction.variant);
  } catch (error) {
    if (error.name === "AbortError") { return; }
    showError(byId("prediction-problem"), error);
    if (error.needsKey) { askForKey(error); }
  } finally {
    if (pending === controller) {
      pending = null;
      byId("result").classList.remove("waiting");
    }
  }
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); predict(); });
for (const id of ["text", "pair"]) {
  byId(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      predict();
    }
  });
  byId(id).addEventListener("input", () => comparison.clear());
}
byId("compare").addEventListener("click", () => { if (byId("form").reportValidity()) { comparison.run(input()); } });
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  start();
});

const THEMES = { "": "system", light: "light", dark: "dark" };
let theme = "";
try { theme = localStorage.getItem("limbert-theme") || ""; } catch { /* private windows have no storage */ }
function showTheme() {
  if (!(theme in THEMES)) { theme = ""; }
  if (theme) { document.documentElement.dataset.theme = theme; } else { delete document.documentElement.dataset.theme; }
  byId("theme").textContent = `Theme: ${THEMES[theme]}`;
}
byId("theme").addEventListener("click", () => {
  theme = { "": "dark", dark: "light", light: "" }[theme];
  try { localStorage.setItem("limbert-theme", theme); } catch { /* valid until the page is closed */ }
  showTheme();
});
showTheme();
start();
