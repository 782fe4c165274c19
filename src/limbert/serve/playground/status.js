// Status of the server, read once a second while the page is visible.

import { bar, byId, make, milliseconds, percent, rate, showError, sparkline, whole } from "./elements.js";
import { call } from "./server.js";

const SECONDS = 60; // that the sparklines show

export class Status {
  constructor(model) {
    this.names = model.variants.map((variant) => variant.name);
    this.flops = new Map(model.variants.map((variant) => [variant.name, variant.flops]));
    this.meters = {
      requests: this.meter("requests per second"),
      queue: this.meter("queued texts"),
      p50: this.meter("latency, p50"),
      p99: this.meter("latency, p99"),
      variant: this.meter("variant in use"),
      refused: this.meter("refused requests"),
    };
    byId("meters").replaceChildren(...Object.values(this.meters).map((meter) => meter.tile));
    document.addEventListener("visibilitychange", () => this.schedule(0));
    this.schedule(0);
  }

  meter(name) {
    const meter = { value: make("b"), more: make("span"), line: make("div"), values: [] };
    meter.tile = make("div", { kind: "tile" }, make("span", { text: name }), meter.value, meter.more, meter.line);
    return meter;
  }

  schedule(wait) {
    clearTimeout(this.timer);
    if (document.visibilityState === "visible") { this.timer = setTimeout(() => this.update(), wait); }
  }

  async update() {
    const start = performance.now();
    try {
      this.show(await call("status"));
    } catch (error) {
      showError(byId("status-note"), error);
      if (error.needsKey) { return; } // continues with a new key
    }
    this.schedule(Math.max(0, 1000 - (performance.now() - start)));
  }

  show(now) {
    byId("status").hidden = false;
    byId("status-note").textContent = `${now.state}; up for ${duration(now.uptime)}, ` +
      `${whole(now.completed)} requests completed${now.workers > 1 ? `; one of ${now.workers} processes` : ""}.`;
    this.set("requests", rate(now.requests_per_second), "last 10 seconds", now.requests_per_second);
    const queued = `${whole(now.queued_tokens)} tokens; ${whole(now.running)} requests in progress`;
    this.set("queue", whole(now.queued), queued, now.queued);
    this.set("p50", milliseconds(now.p50_ms), "median", now.p50_ms ?? 0);
    this.set("p99", milliseconds(now.p99_ms), "99th percentile", now.p99_ms ?? 0);
    this.set("variant", now.variant, "by the server's policy", this.flops.get(now.variant) ?? 0);
    const before = this.refused ?? now.refused;
    this.set("refused", whole(now.refused), `of ${whole(now.refused + now.completed)}`, now.refused - before);
    this.refused = now.refused;
    this.showServed(now.texts_by_variant);
  }

  set(name, value, more, latest) {
    const meter = this.meters[name];
    meter.value.textContent = value;
    meter.more.textContent = more;
    meter.values = [...meter.values, latest].slice(-SECONDS);
    meter.line.replaceChildren(sparkline(meter.values, SECONDS));
  }

  showServed(texts) {
    const total = Object.values(texts).reduce((sum, number) => sum + number, 0);
    byId("served").replaceChildren(...this.names.filter((name) => texts[name]).map((name) => make(
      "li", {}, make("span", { text: name }), bar(texts[name] / total),
      make("span", { text: percent(texts[name] / total), title: whole(texts[name]) }),
    )));
    if (!total) { byId("served").replaceChildren(make("li", {}, make("span", { text: "none yet" }))); }
  }
}

function duration(seconds) {
  if (seconds < 120) { return `${Math.round(seconds)} s`; }
  if (seconds < 7200) { return `${Math.round(seconds / 60)} min`; }
  return `${Math.round(seconds / 3600)} h`;
}
