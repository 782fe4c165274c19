// Which size is asked for: the server's choice with limits, an operating point, or a width and a depth.

import { amount, by, make, percent, plain, quality } from "./draw.js";

const OWN = "own";

export class SizeChoice {
  constructor(menu, changed) {
    this.menu = menu;
    this.changed = changed;
    this.named = new Map(menu.sizes.map((size) => [size.name, size]));
    const grid = menu.sizes.filter((size) => size.width !== null);
    const ordered = (part) => [...new Set(grid.map((size) => size[part]))].sort((one, other) => one - other);
    this.widths = ordered("width");
    this.depths = ordered("depth");
    this.addChoices(grid.length > 0);
    this.addSlider("width", this.widths);
    this.addSlider("depth", this.depths);
    by("sliders").hidden = grid.length === 0;
    const metric = (menu.sizes.find((size) => size.metric) || {}).metric;
    by("quality-label").textContent = metric ? `${metric} at least, such as 0.85` : "Quality at least";
    ["budget", "quality"].forEach((id) => by(id).addEventListener("change", () => this.changed()));
    this.show();
  }

  addChoices(grid) {
    const others = this.menu.sizes.filter((size) => size.width === null).map((size) => [size.name, size.name]);
    const choices = [["", "server's choice"], ...others, ...(grid ? [[OWN, "width and depth"]] : [])];
    by("choices").replaceChildren(...choices.map(([value, text], place) => {
      const input = make("input", { type: "radio", name: "size", value });
      input.checked = place === 0;
      input.addEventListener("change", () => { this.show(); this.changed(); });
      return make("label", {}, input, make("span", { text }));
    }));
  }

  addSlider(id, values) {
    const slider = by(id);
    slider.max = String(Math.max(0, values.length - 1));
    slider.value = slider.max;
    by(`${id}-ticks`).replaceChildren(...values.map((value) => make("span", { text: plain(value) })));
    slider.addEventListener("input", () => {
      by("choices").querySelector(`input[value=${OWN}]`).checked = true;
      this.show();
      this.changed();
    });
  }

  get chosen() {
    return by("choices").querySelector("input:checked").value;
  }

  // The name of the one size that is asked for; empty for the server's choice.
  get name() {
    if (this.chosen !== OWN) { return this.chosen; }
    const [width, depth] = [this.widths[by("width").value], this.depths[by("depth").value]];
    const same = this.menu.sizes.find((size) => size.width === width && size.depth === depth);
    return same ? same.name : `${width}x${depth}`;
  }

  // As the server reads it.
  get parameters() {
    if (this.chosen) {
      const size = this.named.get(this.name);
      return size && size.kind === "policy" ? { policy: this.name } : { subnet: this.name };
    }
    const limit = (id) => (by(id).value.trim() === "" ? undefined : Number(by(id).value));
    return { latency_budget_ms: limit("budget"), min_quality: limit("quality") };
  }

  show() {
    for (const [id, values, of] of [["width", this.widths, "of each layer"], ["depth", this.depths, "of the layers"]]) {
      const value = values[by(id).value];
      if (value === undefined) { continue; }
      by(`${id}-value`).textContent = plain(value);
      by(id).setAttribute("aria-valuetext", `${plain(value)} ${of}`);
    }
    by("sliders").classList.toggle("idle", this.chosen !== OWN);
    by("limits").hidden = this.chosen !== "";
    by("size-note").textContent = this.chosen ? this.note(this.named.get(this.name))
      : "The server takes the best size that answers in time, and smaller ones under load.";
  }

  note(size) {
    if (!size) { return `${this.name} is no size of this model.`; }
    const parts = [size.kind === "policy" ? `${size.name} (${size.policy})` : size.name];
    const full = this.named.get(this.menu.full);
    parts.push(`${amount(size.flops)} FLOPs an input, ${percent(size.flops / full.flops)} of the full model's`);
    if (size.quality !== null) { parts.push(quality(size)); }
    return `${parts.join("; ")}.`;
  }
}
