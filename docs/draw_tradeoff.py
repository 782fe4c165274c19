"""Draw a trained model's accuracy against its measured latency, one line a depth: ``draw_tradeoff.py RUN PICTURE.png``.

Metrics are read from the run's ``results.jsonl``; latency is measured here and now, one 16-token text a call.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from limbert import ElasticModel
from limbert.evaluation.benchmark import median_latency


def main(run: Path, picture: Path) -> None:
    model = ElasticModel.from_pretrained(run)
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = torch.randint(1000, 2000, (1, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    networks = {name: model.view(subnet) for name, subnet in model.subnets().items()}
    seconds = median_latency(networks, inputs, rounds=60)
    metric = next(iter(rows[0]["metrics"]))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    styles = (("#1b6ca8", (4, -12)), ("#e07a1f", (-12, 7)), ("#3a9e5c", (4, -12)))
    for depth, (colour, label) in zip(model.space.depths[::-1], styles, strict=False):
        points = [row for row in rows if row["depth"] == depth]
        x = [1000 * seconds[row["subnet"]] for row in points]
        y = [100 * row["metrics"][metric] for row in points]
        axes.plot(x, y, "o-", color=colour, label=f"depth {depth:g}")
        for row, left, up in zip(points, x, y, strict=True):
            axes.annotate(f"{row['width']:g}", (left, up), textcoords="offset points", xytext=label, fontsize=8)
    axes.set_xlabel("milliseconds a text (batch 1, 16 tokens, median)")
    axes.set_ylabel(f"{metric} (%)")
    axes.set_title("One model, twelve sizes (numbers at the points: width)", fontsize=11)
    axes.grid(alpha=0.3)
    axes.margins(0.07)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=140)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: draw_tradeoff.py RUN PICTURE.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
