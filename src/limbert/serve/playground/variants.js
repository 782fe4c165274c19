// Choice of the variant: the server's policy with limits, an operating point, or a width and a depth.

import { byId, count, make, percent, plain, quality } from "./elements.js";

const GRID = "grid";

export class VariantChoice {
  constructor(model, changed) {
    this.model = model;
    this.changed = changed;
    this.byName = new Map(model.variants.map((variant) => [variant.name, variant]));
    const grid = model.variants.filter((variant) => variant.width !== null);
    const sorted = (name) => [...new Set(grid.map((variant) => variant[name]))].sort((a, b) => a - b);
    this.values = { width: sorted("width"), depth: sorted("depth") };
    this.addChoices(grid.length > 0);
    this.addSlider("width");
    this.addSlider("depth");
    byId("sliders").hidden = grid.length === 0;
    const { metric } = model.variants.find((variant) => variant.metric) || {};
    byId("quality-label").textContent = metric ? `Minimum ${metric}, such as 0.85` : "Minimum quality";
    byId("abstain-field").hidden = model.task.task_type !== "classification";
    ["budget", "quality", "abstain"].forEach((id) => byId(id).addEventListener("change", () => this.changed()));
    this.show();
  }

  addChoices(hasGrid) {
    const others = this.model.variants.filter((variant) => variant.width === null);
    const choices = [["", "server's choice"], ...others.map(({ name }) => [name, name])];
    if (hasGrid) { choices.push([GRID, "width and depth"]); }
    byId("choices").replaceChildren(...choices.map(([value, text], index) => {
      const input = make("input", { type: "radio", name: "variant", value });
      input.checked = index === 0;
      input.addEventListener("change", () => { this.show(); this.changed(); });
      return make("label", {}, input, make("span", { text }));
    }));
  }

  addSlider(id) {
    const slider = byId(id), values = this.values[id];
    slider.max = String(Math.max(0, values.length - 1));
    slider.value = slider.max;
    byId(`${id}-ticks`).replaceChildren(...values.map((value) => make("span", { text: plain(value) })));
    slider.addEventListener("input", () => {
      byId("choices").querySelector(`input[value=${GRID}]`).checked = true;
      this.show();
      this.changed();
    });
  }

  get chosen() {
    return byId("choices").querySelector("input:checked").value;
  }

  // Name of the chosen variant; empty for the server's choice.
  get name() {
    if (this.chosen !== GRID) { return this.chosen; }
    const [width, depth] = ["width", "depth"].map((id) => this.values[id][byId(id).value]);
    const variant = this.model.variants.find((other) => other.width === width && other.depth === depth);
    return variant ? variant.name : `${width}x${depth}`;
  }

  // Request options.
  get parameters() {
    const limit = (id) => (byId(id).value.trim() === "" ? undefined : Number(byId(id).value));
    const abstain_below = limit("abstain");
    if (this.chosen) {
      const variant = this.byName.get(this.name);
      return { [variant && variant.kind === "policy" ? "policy" : "subnet"]: this.name, abstain_below };
    }
    return { latency_budget_ms: limit("budget"), min_quality: limit("quality"), abstain_below };
  }

  // Let the sliders show the variant that ran, unless they choose it.
  follow(name) {
    const variant = this.byName.get(name);
    if (this.chosen === GRID || !variant || variant.width === null) { return; }
    for (const id of ["width", "depth"]) { byId(id).value = String(this.values[id].indexOf(variant[id])); }
    this.show();
  }

  show() {
    for (const [id, whole] of [["width", "each layer"], ["depth", "the layers"]]) {
      const value = this.values[id][byId(id).value];
      if (value === undefined) { continue; }
      byId(`${id}-value`).textContent = plain(value);
      byId(id).setAttribute("aria-valuetext", `${plain(value)} of ${whole}`);
    }
    byId("sliders").classList.toggle("idle", this.chosen !== GRID);
    byId("limits").hidden = this.chosen !== "";
    byId("variant-note").textContent = this.chosen ? this.note(this.byName.get(this.name))
      : "The server runs the best variant that meets its latency target, and smaller ones under load.";
  }

  note(variant) {
    if (!variant) { return `The model has no variant ${this.name}.`; }
    const full = this.byName.get(this.model.full);
    const parts = [variant.kind === "policy" ? `${variant.name} (${variant.policy})` : variant.name];
    parts.push(`${count(variant.flops)} FLOPs per input, ${percent(variant.flops / full.flops)} of the full model`);
    if (variant.quality !== null) { parts.push(quality(variant)); }
    return `${parts.join("; ")}.`;
  }
}
