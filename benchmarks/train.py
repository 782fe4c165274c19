"""How fast does a training step go, against the loop as the papers' programs write it? Contenders take turns.

Contenders, all with the same sub-networks, losses and teacher weights:

* textbook, padded to 128: one forward and backward pass a sub-network, the teacher once a width, batches drawn at
  random, every one padded to 128 tokens, fp32;
* textbook, padded per batch: the same, each batch padded to its own longest example;
* textbook, limbert's batches: the same on the batches that limbert draws (similar lengths together);
* limbert: the trainer's own step on its own batches; with --precision bf16 also under autocast; and, with its own
  sampling of four sub-networks a step, as recipe limbert trains the depth phase.

Printed are examples a second and their ratios, medians of rounds. Every round takes limbert's batches evenly from the
shortest to the longest of fifty, so that all of them stand for an epoch. --check compares the gradients of limbert's
fp32 step with the textbook's on the same batch, without dropout.

Example: python benchmarks/train.py --model ENCODER --data SST-2=glue/SST-2 --data MRPC=glue/MRPC
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trainer_step import optimizer_step, phase_trainer

from limbert import ElasticModel, LimbertError, Space, Subnet
from limbert.core.config import DataConfig, PhaseConfig, TaskType, TrainConfig
from limbert.data.load import load_task_data
from limbert.data.tokenize import TokenizedExamples, tokenize_texts, training_batches
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.base_model import load_base_checkpoint
from limbert.method.losses import hidden_loss, logit_loss, matched_states
from limbert.model.checkpoint import library_versions
from limbert.train.phases import PHASES

PADDED = 128  # tokens
POOL, EVERY = 50, 5  # of so many of limbert's batches every fifth is in a round
TEXTBOOK, PER_BATCH = "textbook, padded to 128", "textbook, padded per batch"
SAME_BATCHES, FP32, SAMPLED = "textbook, limbert's batches", "limbert, fp32", "limbert, fp32, 4 sampled"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    rows = []
    try:
        for text in arguments.data:
            task, _, folder = text.partition("=")
            rows += _measure_task(task, folder, arguments)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    report = {
        "device": describe_this_machine(arguments.threads, device=arguments.device),
        "versions": library_versions(),
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    print(json.dumps(report)) if arguments.json else _print(report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pretrained encoder: folder or hub name")
    parser.add_argument("--data", action="append", required=True, metavar="TASK=FOLDER", help="may be repeated")
    parser.add_argument("--phase", action="append", choices=["width", "depth"], help="default: both")
    parser.add_argument("--layers", default="spread", choices=["spread", "first"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--check", action="store_true", help="compare gradients instead of timing")
    parser.add_argument("--profile", action="store_true", help="show where a step spends its time instead")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="2 shorter rounds of the first task's depth phase")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.data, arguments.phase = 2, arguments.data[:1], ["depth"]
    arguments.phase = arguments.phase or ["width", "depth"]
    return arguments


def _measure_task(task: str, folder: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    data = load_task_data(DataConfig(task=task, data=folder), seed=0)
    start = load_base_checkpoint(TrainConfig(model=arguments.model, output="-"), data.task)
    examples = tokenize_texts(start.map_labels(data.train, data.task), start.tokenizer, max_length=PADDED)
    model = start.load_model(Space(layers=arguments.layers))
    model.network.to(arguments.device)
    return [
        {"task": task, "phase": phase} | _measure(phase, model, examples, kind=data.task.task_type, arguments=arguments)
        for phase in arguments.phase
    ]


def _measure(
    phase: str, model: ElasticModel, examples: TokenizedExamples, *, kind: TaskType, arguments: argparse.Namespace
) -> dict[str, object]:
    config = PhaseConfig(**(dict(PHASES[phase].defaults) | {"batch_size": arguments.batch_size}))
    subnets = list(PHASES[phase].select_subnets(model).values())
    steps = {}
    for name in (TEXTBOOK, PER_BATCH, SAME_BATCHES):
        own = _twin(model), _twin(model)
        steps[name] = _textbook(*own, subnets, config=config, kind=kind, padded=name == TEXTBOOK)
    for precision in dict.fromkeys(("fp32", arguments.precision)):
        steps[f"limbert, {precision}"] = _limbert(phase, model, subnets, config, kind=kind, precision=precision)
    if phase == "depth":
        recipe = replace(config, sampled=4, teacher_width="full")
        steps[SAMPLED] = _limbert(phase, model, subnets, recipe, kind=kind, precision="fp32")
    if arguments.check:
        batch = _collate(examples, _random(examples, arguments.batch_size)[0], arguments.device)
        return {"largest_gradient_difference": _difference(steps, batch)}
    if arguments.profile:
        grouped, size = _grouped(examples, arguments.batch_size)[::EVERY], arguments.batch_size
        parts = {PER_BATCH: _random(examples, size)[:3], FP32: grouped}
        return {
            "milliseconds_per_example": {
                name: _profile(steps[name][0], [_collate(examples, rows, arguments.device) for rows in batches])
                for name, batches in parts.items()
            }
        }
    return _timed(steps, examples, arguments)


def _timed(steps: dict[str, "Step"], examples: TokenizedExamples, arguments: argparse.Namespace) -> dict[str, object]:
    """Rounds in which every contender takes some steps, after one of warm-up (but for the slowest)."""
    size, rounds, every = arguments.batch_size, arguments.rounds, EVERY * (1 + arguments.quick)
    drawn, grouped = _random(examples, size), _grouped(examples, size)
    for name, (step, _) in steps.items():
        if name != TEXTBOOK:
            step(_collate(examples, grouped[0], arguments.device))
    fast: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        spread = grouped[(2 * number + 1) * every // (2 * rounds) :: every]
        for name, (step, _) in steps.items():
            count = 1 if name == TEXTBOOK else 2
            chosen = drawn[2 * number : 2 * number + count] if name in (TEXTBOOK, PER_BATCH) else spread
            batches = [_collate(examples, rows, arguments.device) for rows in chosen]
            begin = time.perf_counter()
            for batch in batches:
                step(batch)
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            fast[name].append(size * len(batches) / (time.perf_counter() - begin))
    medians = {name: statistics.median(values) for name, values in fast.items()}
    return {
        "examples_per_second": medians,
        "over_textbook": {name: medians[name] / medians[TEXTBOOK] for name in medians},
        "over_per_batch": {name: medians[name] / medians[PER_BATCH] for name in medians},
        "rounds": fast,
    }


def _collate(examples: TokenizedExamples, rows: list[int], device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in examples.collate(rows).items()}


Step = tuple[Callable[[dict[str, Tensor]], object], ElasticModel]


def _twin(model: ElasticModel) -> ElasticModel:
    return ElasticModel(copy.deepcopy(model.network), space=model.space)


def _textbook(
    model: ElasticModel,
    teacher: ElasticModel,
    subnets: list[Subnet],
    *,
    config: PhaseConfig,
    kind: TaskType,
    padded: bool,
) -> Step:
    """The papers' loop: for every width a teacher pass, for every sub-network a pass of its own."""
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=config.learning_rate, eps=config.adam_epsilon)
    by_width: dict[int, list[Subnet]] = {}
    for subnet in subnets:
        by_width.setdefault(subnet.heads[0], []).append(subnet)
    teacher.network.eval()

    def step(batch: dict[str, Tensor]) -> None:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        if padded:
            missing = PADDED - inputs["input_ids"].shape[1]
            inputs = {name: torch.nn.functional.pad(tensor, (0, missing)) for name, tensor in inputs.items()}
        for group in by_width.values():
            wide = _teacher_of(model, group[0], config)
            with torch.no_grad(), teacher.at(wide) as network:
                target = network(**inputs, output_hidden_states=True)
            for subnet in group:
                with model.at(subnet) as network:
                    answer = network(**inputs, output_hidden_states=True)
                    states = matched_states(target.hidden_states, subnet.layers)
                    loss = config.logit_weight * logit_loss(answer.logits, target.logits, task_type=kind)
                    loss = loss + config.hidden_weight * hidden_loss(
                        answer.hidden_states, states, inputs["attention_mask"]
                    )
                    loss.backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    model.network.train()
    return step, model


def _teacher_of(model: ElasticModel, subnet: Subnet, config: PhaseConfig) -> Subnet:
    if config.teacher_width == "full":
        return model.full
    layers = model.shape.layers
    return Subnet(tuple(range(layers)), subnet.heads[:1] * layers, subnet.neurons[:1] * layers)


def _limbert(
    phase: str, model: ElasticModel, subnets: list[Subnet], config: PhaseConfig, *, kind: TaskType, precision: str
) -> Step:
    AcceleratorState._reset_state(reset_partial_state=True)  # else it keeps the first precision of the process
    own, teacher = _twin(model), _twin(model)
    trainer = phase_trainer(
        phase,
        model=own,
        teacher=teacher,
        subnets={str(number): subnet for number, subnet in enumerate(subnets)},
        config=config,
        task_type=kind,
        device=model.network.device.type,
        precision=precision,
    )
    return optimizer_step(trainer), own


def _random(examples: TokenizedExamples, batch_size: int) -> list[list[int]]:
    """Batches as the papers' programs draw them."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    return [order[start : start + batch_size] for start in range(0, len(order) - batch_size + 1, batch_size)]


def _grouped(examples: TokenizedExamples, batch_size: int) -> list[list[int]]:
    """The first fifty of limbert's batches, or all where there are fewer, the shortest first."""
    batches = training_batches(examples.lengths, batch_size=batch_size, seed=0, epoch=0)
    whole = [indices for indices in batches if len(indices) == batch_size][:POOL]
    return sorted(whole, key=lambda indices: int(examples.lengths[indices].max()))


def _difference(steps: dict[str, Step], batch: dict[str, Tensor]) -> float:
    """Largest difference of a gradient between limbert's fp32 step and the textbook's, relative to the largest one."""
    found = []
    for name in (SAME_BATCHES, FP32):
        step, model = steps[name]
        _without_dropout(model)
        gradients: dict[str, Tensor] = {}

        def keep(*_: object, model: ElasticModel = model, gradients: dict[str, Tensor] = gradients) -> None:
            for key, parameter in model.network.named_parameters():
                assert parameter.grad is not None, key
                gradients[key] = parameter.grad.clone()

        hook = register_optimizer_step_pre_hook(keep)  # gradients as the optimizer sees them, clipped
        step(batch)
        hook.remove()
        found.append(gradients)
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    return max(float((found[0][key] - found[1][key]).abs().max()) for key in found[0]) / largest


def _without_dropout(model: ElasticModel) -> None:
    for module in model.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _profile(step: Callable[[dict[str, Tensor]], object], batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Milliseconds an example in each operation itself, the longest first; the first batch is run before as warm-up."""
    step(batches[0])
    with torch.profiler.profile() as profile:
        for batch in batches:
            step(batch)
    examples = sum(len(batch["labels"]) for batch in batches)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return {event.key: event.self_cpu_time_total / 1000 / examples for event in events}


def _print(report: dict[str, object]) -> None:
    print(f"{report['device']}, batch {report['batch_size']}, median of {report['rounds']} rounds\n")
    rows: list[dict[str, Any]] = report["rows"]  # type: ignore[assignment]
    for row in rows:
        if "largest_gradient_difference" in row:
            print(f"{row['task']}, {row['phase']}: gradients differ by {row['largest_gradient_difference']:.1e}")
        if "milliseconds_per_example" in row:
            _print_profile(row)
    if "examples_per_second" in rows[0]:
        print("| task, phase | contender | examples/s | over padded to 128 | over padded per batch |")
        print("|---|---|---:|---:|---:|")
    for row in rows:
        for name, speed in row.get("examples_per_second", {}).items():
            ratios = f"{row['over_textbook'][name]:.1f} x | {row['over_per_batch'][name]:.2f} x"
            print(f"| {row['task']}, {row['phase']} | {name} | {speed:.1f} | {ratios} |")


def _print_profile(row: dict[str, Any]) -> None:
    """The operations that take most of either contender's time, in milliseconds an example."""
    times: dict[str, dict[str, float]] = row["milliseconds_per_example"]
    shown = dict.fromkeys(key for values in times.values() for key in [*values][:9])
    print(f"\n{row['task']}, {row['phase']}; milliseconds an example\n\n| | {' | '.join(times)} |\n|---|---:|---:|")
    for key in shown:
        print(f"| {key} | " + " | ".join(f"{values.get(key, 0.0):.2f}" for values in times.values()) + " |")
    others = [sum(value for key, value in values.items() if key not in shown) for values in times.values()]
    print("| all others | " + " | ".join(f"{value:.2f}" for value in others) + " |")
    print("| sum | " + " | ".join(f"{sum(values.values()):.2f}" for values in times.values()) + " |")


if __name__ == "__main__":
    main()
