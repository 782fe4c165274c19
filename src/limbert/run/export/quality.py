"""What int8 costs and gives: the metric and the speed of the exported model before and after, measured side by side."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.data.task_registry import score
from limbert.data.tasks import Task
from limbert.model.outputs import logits_of
from limbert.inference.runtimes import Runtime
from limbert.run.gathering import Gathering

_BATCH = 16
_ROUNDS = 40


@dataclass(frozen=True)
class Quality:
    """How good and how fast one exported model is.

    Attributes:
        metrics: by name, on the labelled examples.
        latency_ms: median of one text at a time, texts of real lengths.
        throughput: examples a second in batches of 16 of similar length.
        file_bytes: its weights' file.
    """

    metrics: dict[str, float]
    latency_ms: float
    throughput: float
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def measure(
    runtimes: Mapping[str, tuple[Runtime, int]],
    examples: TokenizedExamples,
    *,
    task: Task,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Quality]:
    """The quality of several exported models, taking turns, so that a noisy machine is noisy for all.

    Args:
        runtimes: by name, each with the size of its file in bytes.
        examples: labelled.
        task: how logits become metrics.
        progress: called with passes done and in all.
    """
    batches = evaluation_batches(examples.lengths, batch_size=_BATCH)
    logits = {name: Gathering(examples) for name in runtimes}
    together = dict.fromkeys(runtimes, 0.0)
    alone: dict[str, list[float]] = {name: [] for name in runtimes}
    passes = [*batches, *([index % len(examples)] for index in range(_ROUNDS))]
    for done, places in enumerate(passes):
        inputs = {name: tensor for name, tensor in examples.collate(places).items() if name != "labels"}
        for name, (runtime, _) in runtimes.items():
            start = time.perf_counter()
            outputs = runtime.outputs(inputs)
            seconds = time.perf_counter() - start
            if done < len(batches):
                logits[name].add(places, logits_of(outputs), inputs["attention_mask"])
                together[name] += seconds
            else:
                alone[name].append(seconds)
        progress(done + 1, len(passes))
    return {
        name: Quality(
            score(task, logits[name].rows.numpy(), examples),
            1000 * statistics.median(alone[name]),
            len(examples) / together[name],
            size,
        )
        for name, (_, size) in runtimes.items()
    }
