"""How near do small sub-networks come to a teacher where their accuracy says little?

For each sub-network of each run, on the development set: accuracy, the share of examples on which it answers what the
teacher answers, and the mean distance of its probabilities from the teacher's (Kullback-Leibler divergence, in nats).

Example: python benchmarks/agreement.py --teacher runs/mrpc-finetuned --data glue/MRPC runs/plain runs/augmented
"""

import argparse
import json
import sys

import numpy as np
import torch

from limbert.app.cli.evaluate import data_config
from limbert.data.batches import tokenize
from limbert.data.load import load_evaluation_data
from limbert.data.tasks import Task
from limbert.errors import CheckpointError, LimbertError
from limbert.run.checkpoints import Opened, open_checkpoint
from limbert.run.evaluate import subnet_logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="elastic models of one task")
    parser.add_argument("--teacher", required=True, help="the model that they learned from")
    parser.add_argument("--data", required=True, help="folder with the development set")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        teacher = log_probabilities(open_checkpoint(arguments.teacher), arguments.data)["full"]
        for run in arguments.runs:
            opened = open_checkpoint(run)
            labels = _labels(opened, arguments.data)
            for name, mine in log_probabilities(opened, arguments.data, every=True).items():
                distance = (np.exp(teacher) * (teacher - mine)).sum(axis=-1).mean()
                row = {
                    "run": run,
                    "subnet": name,
                    "accuracy": round(100 * float((mine.argmax(axis=-1) == labels).mean()), 2),
                    "agreement": round(100 * float((mine.argmax(axis=-1) == teacher.argmax(axis=-1)).mean()), 2),
                    "distance": round(float(distance), 4),
                }
                print(json.dumps(row))
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")


def log_probabilities(opened: Opened, data: str, *, every: bool = False) -> dict[str, np.ndarray]:
    """``(examples, classes)`` of the full model, or of every sub-network, by name."""
    examples = next(iter(load_evaluation_data(data_config(opened.data, data=data), _task(opened)).values()))
    tokens = tokenize(examples, opened.tokenizer, max_length=opened.max_length)
    subnets = opened.model.subnets() if every else {"full": opened.model.full}
    logits = subnet_logits(opened.model, tokens, subnets=subnets, batch_size=64)
    return {name: torch.from_numpy(found).log_softmax(dim=-1).numpy() for name, found in logits.items()}


def _labels(opened: Opened, data: str) -> np.ndarray:
    return np.array(
        next(iter(load_evaluation_data(data_config(opened.data, data=data), _task(opened)).values())).labels
    )


def _task(opened: Opened) -> Task:
    if opened.task is None or opened.task.kind != "classification":
        raise CheckpointError("the runs must be of a classification, trained by limbert")
    return opened.task


if __name__ == "__main__":
    main()
