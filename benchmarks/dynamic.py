"""Does dynamic inference save time, and not FLOPs alone? One run, all contenders taking turns on the same batches.

The unit is the stock model at full size (plain Transformers). For every policy: its share of the full model's FLOPs,
its share of the full model's time, and the ratio of the two, which is 1 where all saved work is saved time. The own
cost of gates and off-ramps is measured where they are asked and change nothing: every choice of the gates mapped to
full width, and a threshold that no example passes.

Example: python benchmarks/dynamic.py runs/mrpc --data glue/MRPC --policy width --policy balanced
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from limbert.core.config import TaskType
from limbert.data.load import load_evaluation_data
from limbert.data.tokenize import TokenizedExamples, tokenize_texts
from limbert.errors import LimbertError
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.engine import Engine
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, override_data_config
from limbert.inference.policy import Policy, default_exit_rule, named_policy
from limbert.inference.predict import inference_batches
from limbert.method.early_exit import ExitRule
from limbert.model.checkpoint import library_versions

FULL, ENGINE = "stock full model", "engine, full size"
GATES, EXITS, BOTH = "gates, always full", "exits, never taken", "gates and exits, always full"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    try:
        opened = load_checkpoint(arguments.run)
        policies = _policies(opened, arguments)
        examples = _examples(opened, arguments)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    stock = AutoModelForSequenceClassification.from_pretrained(arguments.run).eval()
    assert opened.task is not None
    engines = {name: Engine(opened.model, policy, task_type=opened.task.task_type) for name, policy in policies.items()}
    report = {
        "run": Path(arguments.run).name,
        "device": describe_this_machine(arguments.threads),
        "versions": library_versions(),
        "policies": {name: str(policy) for name, policy in policies.items()},
        "batches": [],
    }
    for batch_size in arguments.batch_size:
        chosen = _sample(examples, max(batch_size * 4, arguments.examples))
        report["batches"].append(_measure(stock, engines, chosen, batch_size=batch_size, rounds=arguments.rounds))
    if arguments.json:
        print(json.dumps(report))
    else:
        _print(report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="elastic model with gates, trained with layers 'first'")
    parser.add_argument("--data", help="folder with dev.* (default: the training's)")
    parser.add_argument("--policy", action="append", help="operating point, width, or static:...; may be repeated")
    parser.add_argument("--widths", help="of the policies width and width+depth")
    parser.add_argument("--exit-threshold", type=float, help="of the policies depth and width+depth")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--examples", type=int, default=192, help="dev examples")
    parser.add_argument("--rounds", type=int, default=7, help="timed passes over each batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="64 examples, 3 rounds: within two minutes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.examples, arguments.rounds = 64, 3
    return arguments


def _policies(opened: LoadedCheckpoint, arguments: argparse.Namespace) -> dict[str, Policy]:
    """The policies that are compared with the stock model, by name."""
    model, task = opened.model, opened.task
    if task is None or model.gates is None:
        raise LimbertError(f"{arguments.run} is no elastic model with gates: limbert train --phases gates")
    whole = (1.0,) * len(model.gates.widths)
    never = _never(task.task_type)
    policies = {
        ENGINE: Policy(subnet="1x1"),
        GATES: Policy(gates=True, widths=whole),
        EXITS: Policy(exits=never),
        BOTH: Policy(gates=True, widths=whole, exits=never),
    }
    for name in arguments.policy or ["width"]:
        policies[name] = named_policy(
            name,
            model.record,
            task_type=task.task_type,
            widths=[float(width) for width in (arguments.widths or "").split(",") if width] or None
            if name in ("width", "width+depth")
            else None,
            exit_threshold=arguments.exit_threshold if name in ("depth", "width+depth") else None,
        )
    return policies


def _never(kind: TaskType) -> ExitRule:
    """A rule that is evaluated at every exit and never true."""
    return ExitRule(default_exit_rule(kind), 0.0)


def _examples(opened: LoadedCheckpoint, arguments: argparse.Namespace) -> TokenizedExamples:
    assert opened.task is not None
    sets = load_evaluation_data(override_data_config(opened.data_config, data=arguments.data), opened.task)
    return tokenize_texts(next(iter(sets.values())), opened.tokenizer, max_length=opened.max_length)


def _sample(examples: TokenizedExamples, count: int) -> TokenizedExamples:
    return examples.select(np.random.default_rng(0).permutation(len(examples))[:count])


def _measure(
    stock: torch.nn.Module,
    engines: dict[str, Engine],
    examples: TokenizedExamples,
    *,
    batch_size: int,
    rounds: int,
) -> dict[str, object]:
    """Seconds (the median over rounds, batch by batch, summed) and FLOPs of every contender on all the examples.

    In each round every contender runs through all batches before the next one does, as it would when it serves alone.
    """
    batches = [inputs for _, inputs in inference_batches(examples, batch_size=batch_size, device=torch.device("cpu"))]
    contenders: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        FULL: lambda inputs: _run_stock(stock, inputs)
    }
    contenders |= {name: engine.run for name, engine in engines.items()}
    times: dict[str, list[list[float]]] = {name: [[] for _ in batches] for name in contenders}
    for turn in range(-1, rounds):  # the first is warm-up
        for name, run in contenders.items():
            for inputs, taken in zip(batches, times[name], strict=True):
                start = time.perf_counter()
                run(inputs)
                if turn >= 0:
                    taken.append(time.perf_counter() - start)
    seconds = {name: sum(map(statistics.median, taken)) for name, taken in times.items()}
    flops = {
        name: sum(int(engine.run(inputs).trace.flops.sum()) for inputs in batches) for name, engine in engines.items()
    }
    rows = {
        name: {
            "time_share": seconds[name] / seconds[FULL],
            "flops_share": flops[name] / flops[ENGINE],
            "ratio": seconds[name] / seconds[FULL] / (flops[name] / flops[ENGINE]),
        }
        for name in engines
    }
    return {
        "batch_size": batch_size,
        "examples": len(examples),
        "tokens_mean": float(examples.lengths.mean()),
        "full_ms_per_example": 1000 * seconds[FULL] / len(examples),
        "policies": rows,
        "own_cost": {name: (seconds[name] - seconds[ENGINE]) / seconds[FULL] for name in (GATES, EXITS, BOTH)},
    }


@torch.inference_mode()
def _run_stock(stock: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> object:
    return stock(**inputs)


def _print(report: dict[str, object]) -> None:
    """A table in Markdown."""
    print(f"{report['run']}: {report['device']}")
    for name, policy in report["policies"].items():  # type: ignore[attr-defined]
        if name not in (ENGINE, GATES, EXITS, BOTH):
            print(f"- {name}: {policy}")
    for part in report["batches"]:  # type: ignore[attr-defined]
        print(
            f"\nBatch {part['batch_size']}: {part['examples']} examples, {part['tokens_mean']:.1f} tokens; "
            f"full model {part['full_ms_per_example']:.2f} ms an example\n"
        )
        print("| | FLOPs share | time share | time / FLOPs |\n|---|---:|---:|---:|")
        for name, row in part["policies"].items():
            print(f"| {name} | {row['flops_share']:.3f} | {row['time_share']:.3f} | {row['ratio']:.2f} |")
        costs = ", ".join(f"{name} {100 * cost:+.1f} %" for name, cost in part["own_cost"].items())
        print(f"\nOwn cost, of the full model's time: {costs}")


if __name__ == "__main__":
    main()
