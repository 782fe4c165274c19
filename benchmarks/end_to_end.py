"""How many examples a second, from text to logits, against what one would take instead: the full model in ONNX Runtime?

The rival is the stock full-size model, exported to ONNX and run by ONNX Runtime in fp32 with its default settings, on
batches of 32 in the order of the file, and with similar lengths together. Against it run sub-networks that
`limbert export` wrote (ONNX or OpenVINO folders) and dynamic policies in Limbert's engine, tokenisation included on
all sides. Contenders take turns; printed are the dev metric and the medians, with the better rival as the unit.

Example: python benchmarks/end_to_end.py --full runs/sst2-finetuned --exported exported/sst2-int8 --data glue/SST-2 \\
    --run runs/sst2-gates --policy balanced
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from limbert.data.load import load_evaluation_data
from limbert.data.metrics import compute_metrics
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.tokenize import evaluation_batches, tokenize_texts
from limbert.errors import CheckpointError, LimbertError
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.engine import Engine
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, override_data_config
from limbert.inference.onnx_graph import write_onnx
from limbert.inference.policy import named_policy
from limbert.inference.predict import run_policy
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.model.checkpoint import library_versions

Answer = Callable[[Examples], np.ndarray]  # texts -> logits (examples, outputs)
FILES = {"model.onnx": "onnxruntime", "openvino_model.xml": "openvino"}
IN_ORDER, BY_LENGTH = "full model, ONNX Runtime, in order", "full model, ONNX Runtime, by length"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    try:
        full = load_checkpoint(arguments.full)
        if full.task is None:
            raise CheckpointError(f"{arguments.full} has no limbert.json that says its task")
        sets = load_evaluation_data(override_data_config(full.data_config, data=arguments.data), full.task)
        examples = next(iter(sets.values()))
        contenders = _rivals(full, arguments) | _exported(arguments, full) | _policies(arguments)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    report = {
        "device": describe_this_machine(arguments.threads),
        "versions": library_versions(),
        "examples": len(examples),
        "rounds": arguments.rounds,
        "metric": full.task.primary_metric,
        "rows": _measure(contenders, examples, full.task, arguments),
    }
    print(json.dumps(report)) if arguments.json else _print(report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", required=True, help="the fine-tuned full-size model: a run of limbert train")
    parser.add_argument("--data", help="folder with dev.* (default: the training's)")
    parser.add_argument("--exported", action="append", default=[], help="folder of limbert export, may be repeated")
    parser.add_argument("--run", help="elastic model that runs the policies")
    parser.add_argument("--policy", action="append", default=[], help="operating point or policy, may be repeated")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="256 examples, 3 rounds; metrics are of all examples")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.timed = 256 if arguments.quick else None
    arguments.rounds = 3 if arguments.quick else arguments.rounds
    return arguments


def _rivals(full: LoadedCheckpoint, arguments: argparse.Namespace) -> dict[str, Answer]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(full.model.extract(full.model.full).eval(), path)
        runtime = load_runtime("onnxruntime", path, threads=arguments.threads)
    return {
        IN_ORDER: _with_runtime(runtime, full.tokenizer, arguments, length=full.max_length, by_length=False),
        BY_LENGTH: _with_runtime(runtime, full.tokenizer, arguments, length=full.max_length, by_length=True),
    }


def _exported(arguments: argparse.Namespace, full: LoadedCheckpoint) -> dict[str, Answer]:
    found = {}
    for folder in map(Path, arguments.exported):
        names = [name for name in FILES if (folder / name).is_file()]
        if not names:
            raise CheckpointError(f"{folder} holds none of {', '.join(FILES)}")
        runtime = load_runtime(FILES[names[0]], folder / names[0], threads=arguments.threads)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        answer = _with_runtime(runtime, tokenizer, arguments, length=full.max_length, by_length=True)
        found[f"{folder.name} ({FILES[names[0]]})"] = answer
    return found


def _with_runtime(
    runtime: Runtime, tokenizer: object, arguments: argparse.Namespace, *, length: int, by_length: bool
) -> Answer:
    def answer(examples: Examples) -> np.ndarray:
        tokens = tokenize_texts(examples, tokenizer, max_length=length, use_cache=False)  # type: ignore[arg-type]
        size = arguments.batch_size
        rows = range(len(tokens))
        order = [[*rows[start : start + size]] for start in rows[::size]]
        if by_length:
            order = evaluation_batches(tokens.lengths, batch_size=size)
        logits: list[np.ndarray] = [np.empty(0)] * len(tokens)
        for indices in order:
            batch = tokens.collate(indices)
            batch.pop("labels", None)
            for index, row in zip(indices, runtime(batch).numpy(), strict=True):
                logits[index] = row
        return np.stack(logits)

    return answer


def _policies(arguments: argparse.Namespace) -> dict[str, Answer]:
    if not arguments.policy:
        return {}
    opened = load_checkpoint(arguments.run or arguments.full)
    assert opened.task is not None
    found = {}
    for name in arguments.policy:
        policy = named_policy(name, opened.model.record)
        found[f"{name} (engine: {policy})"] = _with_engine(
            opened, Engine(opened.model, policy, task_type=opened.task.task_type)
        )
    return found


def _with_engine(opened: LoadedCheckpoint, engine: Engine) -> Answer:
    def answer(examples: Examples) -> np.ndarray:
        tokens = tokenize_texts(examples, opened.tokenizer, max_length=opened.max_length, use_cache=False)
        return run_policy(engine, tokens, batch_size=32, device=opened.model.network.device).logits

    return answer


def _measure(
    contenders: dict[str, Answer], examples: Examples, task: Task, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """Metric on all examples, speed on those that are timed."""
    labels = np.asarray(examples.labels)
    metrics = {
        name: compute_metrics(task, answer(examples), labels)[task.primary_metric]
        for name, answer in contenders.items()
    }
    part = slice(arguments.timed)
    timed = Examples(examples.texts[part], examples.pairs and examples.pairs[part], examples.labels[part])  # type: ignore[index]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, answer in contenders.items():
            begin = time.perf_counter()
            answer(timed)
            seconds[name].append(time.perf_counter() - begin)
    fast = {name: len(timed) / statistics.median(taken) for name, taken in seconds.items()}
    unit = max(fast[IN_ORDER], fast[BY_LENGTH])
    return [
        {"contender": name, "metric": metrics[name], "examples_per_second": fast[name], "over_rival": fast[name] / unit}
        for name in contenders
    ]


def _print(report: dict[str, object]) -> None:
    print(f"{report['examples']} examples, {report['device']}, medians of {report['rounds']} rounds\n")
    print(f"| | {report['metric']} | examples/s | over the rival |\n|---|---:|---:|---:|")
    for row in report["rows"]:  # type: ignore[attr-defined]
        shown = f"{100 * row['metric']:.1f} | {row['examples_per_second']:.0f} | {row['over_rival']:.2f} x"
        print(f"| {row['contender']} | {shown} |")


if __name__ == "__main__":
    main()
