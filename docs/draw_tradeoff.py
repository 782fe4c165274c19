"""Draw a model's metric against latency measured now, on one 16-token text: ``draw_tradeoff.py RUN PICTURE.png``."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from limbert import ElasticModel
from limbert.evaluation.benchmark import time_interleaved
from limbert.inference.runtimes import load_runtime
from limbert.report.read import read_run
from limbert.report.sections import Cost, cost_picture, format_ms


def main(run: str, picture: Path) -> None:
    model, data = ElasticModel.from_pretrained(run), read_run(run)
    ids = torch.randint(1000, 2000, (1, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    runtimes = {name: load_runtime("torch", model.view(subnet)) for name, subnet in model.subnets().items()}
    seconds = time_interleaved({name: partial(runtime, inputs) for name, runtime in runtimes.items()}, rounds=60)
    times = {name: 1000 * median(values) for name, values in seconds.items()}
    cost = Cost("Latency", "latency", "ms", "ms per text of 16 tokens, batch 1, median", 1, times, format_ms)
    replace(cost_picture(data, cost), wide=(720, 430)).save_png(picture)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: draw_tradeoff.py RUN PICTURE.png")
    main(sys.argv[1], Path(sys.argv[2]))
