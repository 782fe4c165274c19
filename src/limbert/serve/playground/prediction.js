// One prediction: label, scores, cost, and the width of each layer.

import { bar, byId, count, make, milliseconds, percent, plain, quality } from "./elements.js";

const SHOWN_LABELS = 8; // the others are shown on request

// The prediction in a few words: "positive", "news, sport", "3.214", "abstained".
export function verdict(prediction) {
  if (prediction.value !== null) { return prediction.value.toFixed(3); }
  if (prediction.abstained) { return "abstained"; }
  return prediction.labels.join(", ") || "no label";
}

export const topScore = (prediction) => (prediction.scores.length ? prediction.scores[0][1] : null);

export function showPrediction(prediction, model, roundTrip) {
  const top = topScore(prediction);
  const score = prediction.value === null && top !== null && prediction.labels.length === 1 ? percent(top) : "";
  byId("label").textContent = verdict(prediction);
  byId("score").textContent = score;
  showScores(prediction, false);
  const { tokenization, queue, inference } = prediction.milliseconds;
  const total = milliseconds(tokenization + queue + inference);
  byId("variant").textContent = prediction.variant;
  const variant = model.variants.find((other) => other.name === prediction.variant);
  byId("variant-more").textContent = variant && variant.quality !== null ? quality(variant) : "";
  byId("time").textContent = total;
  byId("time-more").textContent = `queue ${milliseconds(queue)}, tokenisation ${milliseconds(tokenization)}, ` +
    `inference ${milliseconds(inference)}; round trip ${milliseconds(roundTrip)}`;
  byId("flops").textContent = count(prediction.flops);
  const fraction = prediction.widths.reduce((sum, width) => sum + width, 0) / prediction.widths.length;
  byId("flops-more").textContent = `about ${percent(fraction)} of the full model`; // nearly all FLOPs are in the layers
  byId("tokens").textContent = String(prediction.tokens);
  byId("tokens-more").textContent = prediction.truncated ? "the text was truncated" : `of at most ${model.max_tokens}`;
  showLayers(prediction);
  byId("spoken").textContent = `${verdict(prediction)}${score ? `, ${score}` : ""}, by ${prediction.variant} in ${total}`;
  byId("empty").hidden = true;
  byId("result").hidden = false;
}

function showScores(prediction, all) {
  const shown = all ? prediction.scores : prediction.scores.slice(0, SHOWN_LABELS);
  byId("scores").replaceChildren(...shown.map(([label, score]) => make(
    "li", { kind: prediction.labels.includes(label) ? "chosen" : "" },
    make("span", { text: label }), bar(score), make("span", { text: percent(score) }),
  )));
  byId("scores").hidden = shown.length === 0;
  const more = byId("more-scores");
  more.hidden = all || prediction.scores.length <= SHOWN_LABELS;
  more.textContent = `All ${prediction.scores.length} labels`;
  more.onclick = () => { showScores(prediction, true); byId("scores").tabIndex = -1; byId("scores").focus(); };
}

function showLayers(prediction) {
  const rows = prediction.widths.map((width, layer) => {
    const row = make("li", { kind: width ? "" : "out" }, make("span", { text: `layer ${layer}` }), bar(width),
      make("span", { text: width ? plain(width) : "not run" }));
    row.querySelector("i").style.background = `var(--width-${Math.round(1 + 6 * width)})`;
    return row;
  });
  byId("layers").replaceChildren(...rows.reverse());
  byId("layers").classList.toggle("many", rows.length > 8);
  byId("layers-note").textContent = `${prediction.layers} of ${prediction.widths.length} layers; ` +
    "bars show the width (fraction of heads and neurons). The input is at the bottom.";
}
