"""The price of elasticity: each sub-network as part of the elastic model, distilled alone, and cut out and fine-tuned.

For every seed a teacher is fine-tuned. From it start, with as many steps on the same data:
* elastic: the recipe's other phases, all sub-networks together;
* alone: rewired, then this one sub-network distilled with the settings of the recipe's last phase;
* cut: the teacher's layers at that depth, full width, fine-tuned on the labels (at full depth: the teacher itself).

Each finished training is one JSON line in --output; the same command, run again, goes on after them, also in the middle
of a training. Figures are the first metric of the task on the development set, which chooses nothing.

Example: python benchmarks/alone.py --model ENCODER --data glue/SST-2 --work /tmp/alone --output alone.jsonl \\
    --subnet 0.5x0.75 0.25x0.5 --seed 1 2 3 --option task=sst2 --option train_limit=8000 --set depth.epochs=1
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import limbert
from limbert import Phase, Space
from limbert.core.config import AnyPhaseConfig, PhaseConfig
from limbert.core.space import parse_width_depth, width_depth_name
from limbert.evaluation.results import LOG_NAME, RESULTS_NAME, SubnetResult, read_results
from limbert.files import read_json_lines
from limbert.train.phases import PHASES
from limbert.train.recipes import Recipe, load_recipe, override_recipe

PHASE = "alone"  # the name of the phase that trains one sub-network; settings of it: --set alone.learning_rate=2e-4
ELASTIC, ALONE, CUT = "elastic", "alone", "cut"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seed:
        _run_seed(seed, arguments)
    _print(_read(arguments.output))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pretrained encoder")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.* and dev.*")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trained models")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a training")
    parser.add_argument("--subnet", nargs="+", default=["0.5x0.75", "0.25x0.5"], metavar="WIDTHxDEPTH")
    parser.add_argument("--seed", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--recipe", default="limbert")
    parser.add_argument("--set", action="append", default=[], metavar="PHASE.SETTING=VALUE", help="may be repeated")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of limbert.train")
    parser.add_argument("--elastic", default=ELASTIC, help="prefix of the elastic models' folders in --work")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _run_seed(seed: int, arguments: argparse.Namespace) -> None:
    task, work = arguments.data.name, arguments.work
    own = [text for text in arguments.set if text.startswith(f"{PHASE}.")]
    given = [text for text in arguments.set if text not in own]
    recipe = load_recipe(arguments.recipe)
    recipe = override_recipe(recipe, phases=dict.fromkeys(["finetune", *recipe.phases]), one_phase=given)
    finetune, *elastic_phases = [name for name, config in recipe.phases.items() if isinstance(config, PhaseConfig)]
    teacher, elastic = work / f"teacher-{task}-{seed}", work / f"{arguments.elastic}-{task}-{seed}"
    done = {(row["contender"], row["subnet"]) for row in _read(arguments.output) if _is_of(row, task, seed)}

    def record(contender: str, result: SubnetResult, seconds: float | None, steps: int) -> None:
        if (contender, result.subnet) not in done:
            metric, value = next(iter(result.metrics.items()))
            row = {"task": task, "seed": seed, "contender": contender, "subnet": result.subnet, "steps": steps}
            row |= {"metric": metric, "value": value, "seconds": seconds}
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(task, seed, contender, result.subnet, metric, f"{100 * value:.2f}", flush=True)

    for contender, model, folder, phases in (
        ("teacher", arguments.model, teacher, [finetune]),
        (ELASTIC, str(teacher), elastic, elastic_phases),
    ):
        seconds = None
        if not (folder / RESULTS_NAME).exists():
            seconds = _train(model, folder, override_recipe(recipe, phases=phases), seed, arguments)
        for result in read_results(folder)[: 1 if contender == "teacher" else None]:
            record(contender, result, seconds, _steps(folder))

    for contender, name in _contenders(arguments.subnet):
        if (contender, name) not in done:
            folder = work / f"{contender}-{name}-{task}-{seed}"
            last = recipe.phases[elastic_phases[-1]]
            alone = _one_subnet_recipe(name, recipe.space, last, steps=_steps(elastic), distilled=contender == ALONE)
            alone = override_recipe(alone, one_phase=own if contender == ALONE else [])
            seconds = _train(str(teacher), folder, alone, seed, arguments)
            (result,) = (result for result in read_results(folder) if result.subnet == name)
            record(contender, result, seconds, _steps(folder))
            shutil.rmtree(folder)


def _contenders(names: list[str]) -> Iterator[tuple[str, str]]:
    """The trainings of one sub-network."""
    yield from ((ALONE, name) for name in names)
    yield from ((CUT, name) for name in dict.fromkeys(map(_cut_name, names)) if not name.endswith("x1"))


def _cut_name(name: str) -> str:
    return width_depth_name(1.0, parse_width_depth(name)[1])


def _one_subnet_recipe(name: str, space: Space, last: AnyPhaseConfig, *, steps: int, distilled: bool) -> Recipe:
    """One phase of ``steps`` for one sub-network, with the settings of the phase ``last``."""
    PHASES[PHASE] = Phase(
        PHASE, select_subnets=lambda model: {name: model.subnet(name)}, uses_teacher=distilled, rewires=distilled
    )
    losses = {} if distilled else {"label_weight": 1.0, "logit_weight": 0.0, "hidden_weight": 0.0}
    config = replace(last, epochs=10_000, max_steps=steps, sampled=0, grafts=0, **losses)  # as many epochs as it takes
    width, depth = parse_width_depth(name)
    return Recipe(Space((width, 1.0), (depth, 1.0), space.layers), {PHASE: config})


def _train(model: str, output: Path, recipe: Recipe, seed: int, arguments: argparse.Namespace) -> float:
    """Train into a folder; the seconds that it took, or those since it was resumed."""
    options: dict[str, Any] = dict(option.split("=", 1) for option in arguments.option)
    for name, value in options.items():
        try:
            options[name] = json.loads(value)
        except ValueError:
            continue
    start = time.perf_counter()
    limbert.train(model, data=arguments.data, output=output, recipe=recipe, seed=seed, **options)
    return round(time.perf_counter() - start, 1)


def _steps(run: Path) -> int:
    """Optimizer steps of all phases of a run."""
    steps: dict[str, int] = {}
    for row in read_json_lines(run / LOG_NAME, required_keys={"phase": str, "step": int}):
        steps[row["phase"]] = max(row["step"], steps.get(row["phase"], 0))
    return sum(steps.values())


def _read(output: Path) -> list[dict[str, Any]]:
    return read_json_lines(output, required_keys={"contender": str}) if output.exists() else []


def _is_of(row: dict[str, Any], task: str, seed: int) -> bool:
    return (row["task"], row["seed"]) == (task, seed)


def _print(rows: list[dict[str, Any]]) -> None:
    """One table a task: mean and, from two seeds on, standard deviation over the seeds that have all contenders."""
    for task in dict.fromkeys(row["task"] for row in rows):
        values = {(row["contender"], row["subnet"], row["seed"]): row["value"] for row in rows if row["task"] == task}
        seeds = sorted({seed for _, _, seed in values})
        metric = next(row["metric"] for row in rows if row["task"] == task)
        print(f"\n{task}, {metric}; seeds {', '.join(map(str, seeds))}\n")
        print("| sub-network | teacher | elastic | alone | cut (full width) | elastic - alone |\n" + "|---" * 6 + "|")
        differences = []
        for name in dict.fromkeys(subnet for contender, subnet, _ in values if contender == ALONE):
            cut = ("teacher", "1x1") if _cut_name(name) == "1x1" else (CUT, _cut_name(name))
            keys = [("teacher", "1x1"), (ELASTIC, name), (ALONE, name), cut]
            whole = [seed for seed in seeds if all((*key, seed) in values for key in keys)]
            columns = [[100 * values[*key, seed] for seed in whole] for key in keys]
            columns.append([elastic - alone for elastic, alone in zip(columns[1], columns[2], strict=True)])
            differences += columns[-1]
            print(f"| {name} | " + " | ".join(map(_mean_and_spread, columns)) + " |")
        print(f"\nMean of elastic - alone: {_mean_and_spread(differences)}")


def _mean_and_spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
