// One answer: label, scores, what it took, and the width that each layer ran at.

import { amount, bar, by, make, milliseconds, percent, plain, quality } from "./draw.js";

const SHOWN = 8; // labels; the others follow on request

// The answer in a few words: "positive", "news, sport", "3.214".
export function verdict(answer) {
  if (answer.value !== null) { return answer.value.toFixed(3); }
  return answer.labels.join(", ") || "none of the labels";
}

export const topScore = (answer) => (answer.scores.length ? answer.scores[0][1] : null);

export function showAnswer(answer, menu, roundTrip) {
  by("label").textContent = verdict(answer);
  const top = topScore(answer);
  by("score").textContent = answer.value === null && top !== null && answer.labels.length === 1 ? percent(top) : "";
  showScores(answer, false);
  const { tokenisation, queue, inference } = answer.milliseconds;
  const total = milliseconds(tokenisation + queue + inference);
  by("size").textContent = answer.size;
  const size = menu.sizes.find((one) => one.name === answer.size);
  by("size-more").textContent = size && size.quality !== null ? quality(size) : "";
  by("time").textContent = total;
  by("time-more").textContent = `queue ${milliseconds(queue)}, tokenising ${milliseconds(tokenisation)}, ` +
    `inference ${milliseconds(inference)}; the whole round trip ${milliseconds(roundTrip)}`;
  by("flops").textContent = amount(answer.flops);
  const share = answer.widths.reduce((sum, width) => sum + width, 0) / answer.widths.length; // layers are nearly all of it
  by("flops-more").textContent = `about ${Math.round(100 * share)} % of the full model's`;
  by("tokens").textContent = String(answer.tokens);
  by("tokens-more").textContent = answer.truncated ? "the rest of the text was cut" : `of at most ${menu.max_tokens}`;
  showLayers(answer);
  by("said").textContent = `${verdict(answer)}${by("score").textContent ? `, ${by("score").textContent}` : ""}, ` +
    `answered by ${answer.size} in ${total}`;
  by("empty").hidden = true;
  by("result").hidden = false;
}

function showScores(answer, all) {
  const shown = all ? answer.scores : answer.scores.slice(0, SHOWN);
  by("scores").replaceChildren(...shown.map(([label, score]) => make(
    "li", { kind: answer.labels.includes(label) ? "chosen" : "" },
    make("span", { text: label }), bar(score), make("span", { text: percent(score) }),
  )));
  by("scores").hidden = shown.length === 0;
  const more = by("more-scores");
  more.hidden = all || answer.scores.length <= SHOWN;
  more.textContent = `All ${answer.scores.length} labels`;
  more.onclick = () => { showScores(answer, true); by("scores").tabIndex = -1; by("scores").focus(); };
}

function showLayers(answer) {
  const rows = answer.widths.map((width, layer) => {
    const row = make("li", { kind: width ? "" : "out" }, make("span", { text: `layer ${layer}` }), bar(width),
      make("span", { text: width ? plain(width) : "not run" }));
    row.querySelector("i").style.background = `var(--width-${Math.round(1 + 6 * width)})`;
    return row;
  });
  by("layers").replaceChildren(...rows.reverse());
  by("layers").classList.toggle("many", rows.length > 8);
  by("layers-note").textContent = `${answer.layers} of ${answer.widths.length}, ` +
    "by the share of heads and neurons that took part; the text enters at the bottom.";
}
