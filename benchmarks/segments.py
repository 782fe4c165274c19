"""How fast does a policy run as segments in a fast runtime, against the engine on torch and static sub-networks?

Texts of the development set, tokenised before, in batches of 32 of similar length, one thread. Contenders take turns;
printed are medians of texts per second of CPU time, which on a busy machine is steadier than elapsed time.

Example: taskset -c 0 python benchmarks/segments.py runs/sst2 --policy cascade:0.25x0.5,1x1 --exit-threshold 0.4
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from limbert.core.config import RuntimePrecision
from limbert.data.load import load_evaluation_data
from limbert.data.readers import Examples
from limbert.data.task_registry import compute_task_metrics
from limbert.inference.engine import Engine
from limbert.inference.load import LoadedCheckpoint, load_checkpoint
from limbert.inference.policy import Policy, named_policy
from limbert.inference.predict import OutputCollector, inference_batches
from limbert.inference.runtimes import load_runtime
from limbert.inference.segments import SegmentedPolicy

Contender = Callable[[dict[str, Tensor]], Tensor]  # a batch -> logits
RUNTIMES: tuple[tuple[str, RuntimePrecision], ...] = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),  # on CPUs that compute in it
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="elastic model")
    parser.add_argument("--policy", default="balanced")
    parser.add_argument("--exit-threshold", type=float)
    parser.add_argument("--subnet", action="append", default=[], help="static sub-network, may be repeated")
    parser.add_argument("--texts", type=int, default=872, help="of the development set, at even distances")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(arguments.run)
    policy = named_policy(arguments.policy, checkpoint.model.record, exit_threshold=arguments.exit_threshold)
    examples = next(iter(load_evaluation_data(checkpoint.data_config, checkpoint.trained_task).values()))
    chosen = examples.select([*range(0, len(examples), max(1, len(examples) // arguments.texts))])
    with tempfile.TemporaryDirectory() as folder:
        contenders = load_contenders(checkpoint, policy, arguments.subnet, Path(folder))
    print_table(contenders, checkpoint, chosen, rounds=arguments.rounds)


def load_contenders(
    checkpoint: LoadedCheckpoint, policy: Policy, subnets: list[str], folder: Path
) -> dict[str, Contender]:
    """The policy on torch and as segments, and the sub-networks, by name."""
    engine = Engine(checkpoint.model, policy, task_type=checkpoint.trained_task.task_type)
    contenders: dict[str, Contender] = {f"{policy} | torch fp32": lambda batch: engine.run(batch).logits}
    for runtime, precision in RUNTIMES:
        segmented, new = SegmentedPolicy(checkpoint, policy, runtime), folder / f"{runtime}-{precision}"
        new.mkdir()
        segmented.write(new)
        compiled = segmented.load(new, threads=1, precision=precision)
        contenders[f"{policy} | {runtime} {precision}"] = lambda batch, compiled=compiled: compiled.run(batch).logits
        for name in subnets:
            view = checkpoint.model.view(checkpoint.model.subnet(name))
            contenders[f"{name} | {runtime} {precision}"] = load_runtime(runtime, view, threads=1, precision=precision)
    return contenders


def print_table(
    contenders: dict[str, Contender], checkpoint: LoadedCheckpoint, examples: Examples, *, rounds: int
) -> None:
    """Measure all contenders in turns."""
    tokens, task = checkpoint.tokenize(examples), checkpoint.trained_task
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    metrics: dict[str, float] = {}
    for _ in range(rounds):
        for name, contender in contenders.items():
            collector = OutputCollector(tokens)
            start = time.process_time()
            for indices, inputs in inference_batches(tokens, batch_size=32, device=torch.device("cpu")):
                collector.add(indices, contender(inputs))
            seconds[name].append(time.process_time() - start)
            metrics[name] = compute_task_metrics(task, collector.values, tokens)[task.primary_metric]
    print(f"{len(tokens)} texts, medians of {rounds} rounds\n")
    print(f"| | runtime | {task.primary_metric} | texts/s | slowest to fastest |\n|---|---|---:|---:|---:|")
    for name, taken in seconds.items():
        low, middle, high = (len(tokens) / value for value in (max(taken), statistics.median(taken), min(taken)))
        print(f"| {name} | {100 * metrics[name]:.1f} | {middle:.0f} | {low:.0f} to {high:.0f} |")


if __name__ == "__main__":
    main()
