// The server at work: asked once a second while the page is seen.

import { bar, by, make, milliseconds, percent, rate, showProblem, spark, whole } from "./draw.js";
import { call } from "./server.js";

const SECONDS = 60; // that the lines show

export class Live {
  constructor(menu) {
    this.order = menu.sizes.map((size) => size.name);
    this.flops = new Map(menu.sizes.map((size) => [size.name, size.flops]));
    this.meters = {
      requests: this.meter("requests a second"),
      queue: this.meter("waiting"),
      p50: this.meter("time, p50"),
      p99: this.meter("time, p99"),
      size: this.meter("size in use"),
      refused: this.meter("refused"),
    };
    by("meters").replaceChildren(...Object.values(this.meters).map((meter) => meter.tile));
    document.addEventListener("visibilitychange", () => this.plan(0));
    this.plan(0);
  }

  meter(name) {
    const meter = { value: make("b"), more: make("span"), line: make("div"), values: [] };
    meter.tile = make("div", { kind: "tile" }, make("span", { text: name }), meter.value, meter.more, meter.line);
    return meter;
  }

  plan(wait) {
    clearTimeout(this.timer);
    if (document.visibilityState === "visible") { this.timer = setTimeout(() => this.look(), wait); }
  }

  async look() {
    const began = performance.now();
    try {
      this.show(await call("live"));
    } catch (problem) {
      showProblem(by("live-note"), problem);
      if (problem.status === 401 || problem.status === 403) { return; } // goes on with a new key
    }
    this.plan(Math.max(0, 1000 - (performance.now() - began)));
  }

  show(now) {
    by("live").hidden = false;
    by("live-note").textContent = `${now.state}; up for ${duration(now.uptime)}, ${whole(now.answered)} answered` +
      `${now.workers > 1 ? `; this is one of ${now.workers} processes` : ""}.`;
    this.set("requests", rate(now.requests_per_second), "lately", now.requests_per_second);
    this.set("queue", whole(now.queued), `${whole(now.queued_tokens)} tokens; ${whole(now.running)} under way`, now.queued);
    this.set("p50", milliseconds(now.p50_ms), "half are quicker", now.p50_ms ?? 0);
    this.set("p99", milliseconds(now.p99_ms), "99 of 100 are quicker", now.p99_ms ?? 0);
    this.set("size", now.size, "by its own choice", this.flops.get(now.size) ?? 0);
    const before = this.refused ?? now.refused;
    this.set("refused", whole(now.refused), `of ${whole(now.refused + now.answered)}`, now.refused - before);
    this.refused = now.refused;
    this.showServed(now.sizes);
  }

  set(name, value, more, point) {
    const meter = this.meters[name];
    meter.value.textContent = value;
    meter.more.textContent = more;
    meter.values = [...meter.values, point].slice(-SECONDS);
    meter.line.replaceChildren(spark(meter.values, SECONDS));
  }

  showServed(sizes) {
    const total = Object.values(sizes).reduce((sum, count) => sum + count, 0);
    const served = this.order.filter((name) => sizes[name]);
    by("served").replaceChildren(...served.map((name) => make(
      "li", {}, make("span", { text: name }), bar(sizes[name] / total),
      make("span", { text: percent(sizes[name] / total), title: whole(sizes[name]) }),
    )));
    if (!total) { by("served").replaceChildren(make("li", {}, make("span", { text: "none yet" }))); }
  }
}

function duration(seconds) {
  if (seconds < 120) { return `${Math.round(seconds)} s`; }
  if (seconds < 7200) { return `${Math.round(seconds / 60)} min`; }
  return `${Math.round(seconds / 3600)} h`;
}
