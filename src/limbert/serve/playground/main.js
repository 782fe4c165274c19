// Puts the page together: asks for the menu, then for answers.

import { AllSizes } from "./all.js";
import { showAnswer } from "./answer.js";
import { by, showProblem, whole } from "./draw.js";
import { Live } from "./live.js";
import { call, useKey } from "./server.js";
import { SizeChoice } from "./size.js";

const PAUSE = 200; // ms without a change before a changed size is asked for

let menu, choice, all, waiting, pause, live;

async function begin() {
  try {
    menu = await call("menu");
  } catch (problem) {
    askForKey(problem);
    return;
  }
  showProblem(by("problem"), null);
  by("key-form").hidden = true;
  if (choice) { live.plan(0); return; }
  showModel();
  choice = new SizeChoice(menu, () => {
    clearTimeout(pause);
    if (!by("result").hidden || waiting) { pause = setTimeout(answer, PAUSE); }
  });
  all = new AllSizes(menu);
  live = new Live(menu);
  by("text").focus();
}

function showModel() {
  const { task } = menu;
  document.title = `${menu.name}: Limbert playground`;
  by("name").textContent = menu.name;
  const subnets = menu.sizes.filter((size) => size.kind === "subnet").length;
  const points = menu.sizes.length - subnets;
  by("about").textContent = `${task.name || "own data"}, ${task.kind}` +
    `${task.labels.length ? ` with ${whole(task.labels.length)} labels` : ""}: one model at ${subnets} sizes` +
    `${points ? ` and ${points} operating points that choose for each text` : ""}`;
  by("pair-field").hidden = menu.pair === "none";
  by("pair").required = menu.pair === "needed";
  if (menu.pair === "needed") { by("text-label").textContent = "First text"; }
  if (menu.pair === "optional") { by("pair-label").textContent = "Second text, if the task has pairs"; }
  by("work").hidden = false;
  by("sizes").hidden = false;
}

function askForKey(problem) {
  const refused = problem.status === 401 || problem.status === 403;
  by("key-form").hidden = !refused;
  showProblem(by("problem"), refused && !by("key").value ? null : problem);
  if (refused) { by("key").focus(); }
  if (problem.status === 0 || problem.status === 503) { setTimeout(begin, 2000); }
}

function question() {
  return { text: by("text").value, pair: menu.pair === "none" ? null : by("pair").value || null };
}

async function answer() {
  clearTimeout(pause);
  if (!by("ask").reportValidity()) { return; }
  if (waiting) { waiting.abort(); }
  const mine = new AbortController();
  waiting = mine;
  by("result").classList.add("waiting");
  const began = performance.now();
  try {
    const found = await call("answer", { body: { ...question(), parameters: choice.parameters }, signal: mine.signal });
    showProblem(by("answer-problem"), null);
    showAnswer(found, menu, performance.now() - began);
  } catch (problem) {
    if (problem.name === "AbortError") { return; }
    showProblem(by("answer-problem"), problem);
    if (problem.status === 401 || problem.status === 403) { askForKey(problem); }
  } finally {
    if (waiting === mine) {
      waiting = null;
      by("result").classList.remove("waiting");
    }
  }
}

by("ask").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
for (const id of ["text", "pair"]) {
  by(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      answer();
    }
  });
  by(id).addEventListener("input", () => all.clear());
}
by("all").addEventListener("click", () => { if (by("ask").reportValidity()) { all.run(question()); } });
by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(by("key").value);
  begin();
});

const THEMES = { "": "as the system", light: "light", dark: "dark" };
let theme = "";
try { theme = localStorage.getItem("limbert-theme") || ""; } catch { /* private windows have no storage */ }
function paint() {
  if (theme in THEMES && theme) { document.documentElement.dataset.theme = theme; } else { delete document.documentElement.dataset.theme; theme = ""; }
  by("theme").textContent = `Theme: ${THEMES[theme]}`;
}
by("theme").addEventListener("click", () => {
  theme = { "": "dark", dark: "light", light: "" }[theme];
  try { localStorage.setItem("limbert-theme", theme); } catch { /* then it holds for this visit */ }
  paint();
});
paint();
begin();
