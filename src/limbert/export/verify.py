"""Benchmarks of an export before and after int8: metrics, latency and throughput in its own runtime."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from limbert.data.task_registry import compute_task_metrics
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.inference.predict import OutputCollector, inference_inputs
from limbert.inference.runtimes import Runtime
from limbert.model.outputs import logits_of

_BENCHMARK_BATCH_SIZE = 16
_LATENCY_ROUNDS = 40


@dataclass(frozen=True)
class RuntimeBenchmark:
    """Metrics and speed of one exported model."""

    metrics: dict[str, float]  # by name, on the labelled examples
    latency_ms: float  # median of one text at a time, texts of real lengths
    throughput: float  # examples per second in batches of 16 of similar length
    file_bytes: int  # of the file with the weights


def benchmark_runtimes(
    runtimes: Mapping[str, tuple[Runtime, int]],
    examples: TokenizedExamples,
    *,
    task: Task,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, RuntimeBenchmark]:
    """Benchmark exported models, given by name with their file sizes in bytes.

    They take turns, so that a slow phase of the machine affects all.
    """
    batches = evaluation_batches(examples.lengths, batch_size=_BENCHMARK_BATCH_SIZE)
    logits = {name: OutputCollector(examples) for name in runtimes}
    batch_seconds = dict.fromkeys(runtimes, 0.0)
    single_seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    passes = [*batches, *([index % len(examples)] for index in range(_LATENCY_ROUNDS))]
    for done, indices in enumerate(passes):
        inputs = inference_inputs(examples, indices)
        for name, (runtime, _) in runtimes.items():
            start = time.perf_counter()
            outputs = runtime.outputs(inputs)
            seconds = time.perf_counter() - start
            if done < len(batches):
                logits[name].add_logits(indices, logits_of(outputs), inputs["attention_mask"])
                batch_seconds[name] += seconds
            else:
                single_seconds[name].append(seconds)
        progress(done + 1, len(passes))
    return {
        name: RuntimeBenchmark(
            metrics=compute_task_metrics(task, logits[name].values, examples),
            latency_ms=1000 * statistics.median(single_seconds[name]),
            throughput=len(examples) / batch_seconds[name],
            file_bytes=file_bytes,
        )
        for name, (_, file_bytes) in runtimes.items()
    }
