"""Draw a model's metric against latency measured now, on one 16-token text: ``draw_tradeoff.py RUN PICTURE.png``."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from limbert import ElasticModel
from limbert.evaluation.benchmark import median_latency
from limbert.report.read import read_run
from limbert.report.sections import Cost, cost_picture, format_ms


def main(run: str, picture: Path) -> None:
    model, data = ElasticModel.from_pretrained(run), read_run(run)
    ids = torch.randint(1000, 2000, (1, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    networks = {name: model.view(subnet) for name, subnet in model.subnets().items()}
    seconds = median_latency(networks, inputs, rounds=60)
    times = {name: 1000 * value for name, value in seconds.items()}
    cost = Cost("Latency", "latency", "ms", "ms per text of 16 tokens, batch 1, median", 1, times, format_ms)
    replace(cost_picture(data, cost), wide=(720, 430)).save_png(picture)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: draw_tradeoff.py RUN PICTURE.png")
    main(sys.argv[1], Path(sys.argv[2]))
