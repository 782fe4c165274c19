// Predictions for one text at all variants: a table that grows as they arrive.

import { topScore, verdict } from "./prediction.js";
import { bar, byId, count, make, milliseconds, percent, quality, showError } from "./elements.js";
import { lines } from "./server.js";

const VS_FULL = "vs. full model";

export class Comparison {
  constructor(model) {
    this.model = model;
    this.running = null;
    this.isRegression = model.task.task_type === "regression";
    this.columns = ["variant", ...(this.isRegression ? ["value"] : ["label", "score"]), "time", "FLOPs", VS_FULL];
    byId("table").tHead.rows[0].replaceChildren(...this.columns.map((text) => make(
      "th", { text, scope: "col", kind: text === "label" || text === "FLOPs" ? "left" : "" },
    )));
  }

  // The text has changed: its predictions are out of date.
  clear() {
    if (this.running) { this.running.abort(); }
    byId("table").hidden = true;
    byId("table").tBodies[0].replaceChildren();
  }

  async run(input) {
    this.clear();
    const running = new AbortController();
    this.running = running;
    byId("compare").disabled = true;
    byId("comparison-note").textContent = "Running…";
    try {
      await lines("compare", { body: input, signal: running.signal }, (line) => this.add(line));
      byId("comparison-note").textContent = this.summary();
    } catch (error) {
      if (error.name === "AbortError") {
        byId("comparison-note").textContent = "Cancelled: the text has changed.";
      } else {
        showError(byId("comparison-note"), error);
      }
    } finally {
      byId("compare").disabled = false;
      if (this.running === running) { this.running = null; }
    }
  }

  add(line) {
    byId("table").hidden = false;
    const cell = (column, text, kind = "") => make("td", { text, kind, "data-label": column });
    const cells = [this.nameCell(line.name)];
    if (line.error) {
      cells.push(make("td", { text: line.error, kind: "left rest", colspan: this.columns.length - 1 }));
    } else {
      const { prediction } = line;
      if (this.isRegression) {
        cells.push(cell("value", verdict(prediction)));
      } else {
        const score = prediction.scores.length ? percent(topScore(prediction)) : "";
        cells.push(cell("label", verdict(prediction), "left"), cell("score", score));
      }
      const time = milliseconds(prediction.milliseconds.inference);
      cells.push(cell("time", time), flopsCell(line), cell(VS_FULL, difference(line), "agrees"));
    }
    const kind = line.error ? "failed" : line.agrees === false ? "differs" : "";
    byId("table").tBodies[0].append(make("tr", { kind }, ...cells));
  }

  nameCell(name) {
    const variant = this.model.variants.find((other) => other.name === name);
    const details = variant && variant.quality !== null ? [make("small", { text: quality(variant) })] : [];
    return make("td", { text: name }, ...details);
  }

  summary() {
    const rows = [...byId("table").tBodies[0].rows];
    const differ = rows.filter((row) => row.classList.contains("differs")).length;
    const failed = rows.filter((row) => row.classList.contains("failed")).length;
    const times = "Each time is one inference, under the present load.";
    if (failed) { return `${failed} of ${rows.length} variants failed. ${times}`; }
    if (this.isRegression) { return `${rows.length} variants. ${times}`; }
    return (differ ? `${differ} of ${rows.length} variants differ from the full model. `
      : `All ${rows.length} variants agree with the full model. `) + times;
  }
}

function flopsCell(line) {
  const cell = make("td", { text: count(line.prediction.flops), kind: "left costs", "data-label": "FLOPs" });
  if (line.flops_fraction !== null) {
    cell.append(make("small", { text: percent(line.flops_fraction) }), bar(line.flops_fraction));
  }
  return cell;
}

function difference(line) {
  if (line.difference === null) { return line.agrees === null ? "" : line.agrees ? "same" : "different"; }
  return line.difference === 0 ? "same" : `${line.difference > 0 ? "+" : "−"}${Math.abs(line.difference).toFixed(3)}`;
}
