// The same text at all sizes: a row a size, filled as the answers come.

import { topScore, verdict } from "./answer.js";
import { amount, bar, by, make, milliseconds, percent, quality, showProblem } from "./draw.js";
import { lines } from "./server.js";

const AS_FULL = "beside full";

export class AllSizes {
  constructor(menu) {
    this.menu = menu;
    this.running = null;
    const value = menu.task.kind === "regression";
    this.columns = ["size", ...(value ? ["value"] : ["label", "score"]), "time", "FLOPs", AS_FULL];
    by("table").tHead.rows[0].replaceChildren(...this.columns.map((text) => make(
      "th", { text, scope: "col", kind: text === "label" || text === "FLOPs" ? "left" : "" },
    )));
  }

  // Forget what is shown: it belongs to another text.
  clear() {
    if (this.running) { this.running.abort(); }
    by("table").hidden = true;
    by("table").tBodies[0].replaceChildren();
  }

  async run(question) {
    this.clear();
    const running = new AbortController();
    this.running = running;
    by("all").disabled = true;
    by("sizes-note").textContent = "Answering…";
    try {
      await lines("sizes", { body: question, signal: running.signal }, (row) => this.add(row));
      by("sizes-note").textContent = this.summary();
    } catch (error) {
      if (error.name === "AbortError") {
        by("sizes-note").textContent = "Stopped: the text has changed.";
      } else {
        showProblem(by("sizes-note"), error);
      }
    } finally {
      by("all").disabled = false;
      if (this.running === running) { this.running = null; }
    }
  }

  add(row) {
    by("table").hidden = false;
    const cell = (column, text, kind = "") => make("td", { text, kind, "data-label": column });
    const cells = [this.nameCell(row.name)];
    const kind = row.error ? "waits" : row.agrees === false ? "differs" : "";
    if (row.error) {
      cells.push(make("td", { text: row.error, kind: "left rest", colspan: this.columns.length - 1 }));
    } else {
      const { answer } = row;
      if (answer.value === null) {
        cells.push(cell("label", verdict(answer), "left"), cell("score", answer.scores.length ? percent(topScore(answer)) : ""));
      } else {
        cells.push(cell("value", verdict(answer)));
      }
      cells.push(cell("time", milliseconds(answer.milliseconds.inference)), flopsCell(row), cell(AS_FULL, likeness(row), "agrees"));
    }
    by("table").tBodies[0].append(make("tr", { kind }, ...cells));
  }

  nameCell(name) {
    const size = this.menu.sizes.find((one) => one.name === name);
    const known = size && size.quality !== null ? [make("small", { text: quality(size) })] : [];
    return make("td", { text: name }, ...known);
  }

  summary() {
    const rows = [...by("table").tBodies[0].rows];
    const differ = rows.filter((row) => row.classList.contains("differs")).length;
    const failed = rows.filter((row) => row.classList.contains("waits")).length;
    const times = "Times are of one inference each, in the traffic that there was.";
    if (failed) { return `${failed} of ${rows.length} sizes gave no answer. ${times}`; }
    if (this.menu.task.kind === "regression") { return `${rows.length} sizes. ${times}`; }
    return (differ ? `${differ} of ${rows.length} sizes answer otherwise than the full model. `
      : `All ${rows.length} sizes answer as the full model does. `) + times;
  }
}

function flopsCell(row) {
  const cell = make("td", { text: amount(row.answer.flops), kind: "left costs", "data-label": "FLOPs" });
  if (row.flops_share !== null) { cell.append(make("small", { text: percent(row.flops_share) }), bar(row.flops_share)); }
  return cell;
}

// How an answer stands to the full model's: the same or not, or by how much a value differs.
function likeness(row) {
  if (row.difference === null) { return row.agrees === null ? "" : row.agrees ? "same" : "other"; }
  return row.difference === 0 ? "same" : `${row.difference > 0 ? "+" : "−"}${Math.abs(row.difference).toFixed(3)}`;
}
