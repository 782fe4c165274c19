"""``limbert search``: sub-networks off the grid, each layer with heads and neurons of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.evaluate import override_data_config
from limbert.core.config import require
from limbert.errors import CheckpointError

if TYPE_CHECKING:
    from limbert.core.config import DataConfig
    from limbert.core.subnet import Subnet
    from limbert.evaluation.results import SubnetResult
    from limbert.evaluation.search import TrialResult
    from limbert.inference.load import LoadedCheckpoint


def search(
    run: Annotated[str, typer.Argument(help="elastic model", metavar="RUN")],
    data: opt.Data = None,
    train: opt.TrainFile = None,
    dev: opt.DevFile = None,
    objective: Annotated[str, typer.Option(help="what the metric is weighed against: flops or latency")] = "flops",
    trials: Annotated[int, typer.Option(help="different sub-networks to look at, the grid's among them", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="seed of the optimiser")] = 42,
    batch: Annotated[int, typer.Option(help="latency: texts a pass", min=1)] = 1,
    tokens: Annotated[int | None, typer.Option(help="latency: tokens a text (default: the median of the data)")] = None,
    batch_size: Annotated[int, typer.Option(help="examples a batch; results do not depend on it", min=1)] = 64,
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Search sub-networks off the grid of widths and depths: any layers, each with heads and neurons of its own.

    NSGA-II (optuna) weighs the metric on the validation slice of the training data against the cost, beginning with
    the grid. Killed or stopped, the same command goes on where it was (search.jsonl); with more --trials it goes on
    further. The best are saved in the model by name, for evaluate, predict and profile, and measured on the
    development set, which chooses nothing.

    Example: limbert search runs/mrpc --data glue/MRPC --trials 200
    """
    if not Path(run).is_dir():
        raise CheckpointError(f"no model folder at {run}")
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.data.load import load_evaluation_data
    from limbert.evaluation.search import (
        JOURNAL_NAME,
        OBJECTIVES,
        Journal,
        SubnetEncoding,
        SubnetEvaluator,
        require_optuna,
        search_subnets,
    )
    from limbert.inference.load import load_checkpoint, load_validation_split

    require(objective in OBJECTIVES, "objective", objective, "one of " + ", ".join(OBJECTIVES))
    require_optuna()
    opened = load_checkpoint(run)
    if opened.task is None:
        raise CheckpointError(f"{run} has no limbert.json; train it with limbert train first")
    config = override_data_config(opened.data_config, data=data, train=train, dev=dev)
    load_evaluation_data(config, opened.task)  # refuses early what could not be reported on in the end
    examples = opened.tokenize(load_validation_split(opened, config))
    measure = SubnetEvaluator(
        opened.model,
        examples,
        task=opened.task,
        objective=objective,  # type: ignore[arg-type]
        batch_size=batch_size,
        latency_batch=batch,
        latency_tokens=tokens,
    )
    journal = Journal(Path(run) / JOURNAL_NAME, measure.conditions)
    grid = opened.model.subnets()
    if len(journal):
        show.stderr.print(f"{len(journal)} sub-networks were measured before ({run}/{JOURNAL_NAME})", soft_wrap=True)
    with show.progress_bar("searching") as advance:
        judged = search_subnets(
            SubnetEncoding(opened.model),
            list(grid.values()),
            evaluate=measure,
            journal=journal,
            trials=trials,
            seed=seed,
            progress=advance,
        )
    _save_and_print_front(run, opened, judged, config=config, objective=objective, as_json=as_json)


def _save_and_print_front(
    run: str,
    opened: "LoadedCheckpoint",
    trials: "Sequence[TrialResult]",
    *,
    config: "DataConfig",
    objective: str,
    as_json: bool,
) -> None:
    """Save the front, measure it on dev beside the grid, and say whether it was worth it."""
    from limbert.cli import show
    from limbert.core.pareto import pareto_front
    from limbert.evaluation.search import save_found_results, save_found_subnets
    from limbert.model.checkpoint import searched_subnet_name

    assert opened.task is not None
    grid = {subnet: name for name, subnet in opened.model.subnets().items()}
    names = {one.subnet: grid.get(one.subnet) or searched_subnet_name(one.subnet) for one in trials}
    front = pareto_front(trials, cost=lambda one: one.relative_cost, value=lambda one: one.metric_value)
    found = [one for one in front if one.subnet not in grid]
    save_found_subnets(run, found, metric=opened.task.primary_metric, objective=objective)  # type: ignore[arg-type]
    wanted = {names[one.subnet]: one.subnet for one in found} | opened.model.subnets()
    results = {result.subnet: result for result in _evaluate_on_dev(opened, wanted, config)}
    save_found_results(run, [results[names[one.subnet]] for one in found])
    rows = _front_rows(
        trials, front, names, results=results, primary_metric=opened.task.primary_metric, grid_names=set(grid.values())
    )
    if as_json:
        show.print_json({"trials": len(trials), "objective": objective, "front": rows})
        return
    show.stdout.print(f"{len(trials)} sub-networks on the validation slice; the front, and what it reaches on dev:")
    show.stdout.print(_front_table(rows, metric=opened.task.primary_metric, objective=objective))
    show.stdout.print(
        _compare_with_grid([row for row in rows if not row["grid"]], objective), highlight=False, soft_wrap=True
    )
    if found:
        show.stdout.print(f"saved in {run}/limbert.json: limbert evaluate {run} --subnet {names[found[-1].subnet]}")


def _evaluate_on_dev(
    opened: "LoadedCheckpoint", subnets: "Mapping[str, Subnet]", config: "DataConfig"
) -> "list[SubnetResult]":
    from limbert.cli import show
    from limbert.data.load import load_evaluation_data
    from limbert.evaluation.subnets import evaluate

    assert opened.task is not None
    sets = load_evaluation_data(config, opened.task)
    tokens = {name: opened.tokenize(part) for name, part in sets.items()}
    with show.progress_bar("on dev") as advance:
        return evaluate(opened.model, tokens, task=opened.task, subnets=subnets, progress=advance)


def _front_rows(
    trials: "Sequence[TrialResult]",
    front: "Sequence[TrialResult]",
    names: "Mapping[Subnet, str]",
    *,
    results: "Mapping[str, SubnetResult]",
    primary_metric: str,
    grid_names: set[str],
) -> list[dict[str, Any]]:
    """The front; ``grid_dev`` is the best of the grid on dev at no more cost, None where there is none."""
    grid = [
        (one.relative_cost, results[names[one.subnet]].mean_metric(primary_metric))
        for one in trials
        if names[one.subnet] in grid_names
    ]
    return [
        {"subnet": names[one.subnet]}
        | one.subnet.to_dict()
        | {
            "grid": names[one.subnet] in grid_names,
            "cost_share": one.relative_cost,
            "validation": one.metric_value,
            "dev": results[names[one.subnet]].mean_metric(primary_metric),
            "grid_dev": max((value for cost, value in grid if cost <= one.relative_cost + 1e-9), default=None),
        }
        for one in front
    ]


def _front_table(rows: Sequence[dict[str, Any]], *, metric: str, objective: str) -> Any:
    from rich.table import Table

    table = Table(header_style="bold")
    for name in ("sub-network", "layers"):
        table.add_column(name, no_wrap=True)
    for name in ("mean heads", f"{objective} of full", f"{metric}, validation", f"{metric}, dev", "best of grid, dev"):
        table.add_column(name, justify="right")
    for row in rows:
        heads = f"{sum(row['heads']) / len(row['heads']):.1f}"
        values = [f"{100 * row[name]:.1f}" for name in ("validation", "dev")]
        grid = "" if row["grid_dev"] is None else f"{100 * row['grid_dev']:.1f}"
        cells = row["subnet"], _format_ranges(row["layers"]), heads, f"{100 * row['cost_share']:.1f} %", *values, grid
        table.add_row(*cells, style="dim" if row["grid"] else "")
    return table


def _format_ranges(layers: Sequence[int]) -> str:
    """Indices with runs drawn together: ``0-3 5``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][-1] == layer - 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return " ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def _compare_with_grid(rows: Sequence[dict[str, Any]], objective: str) -> str:
    """Whether what was found is better on dev than the grid is for as little."""
    compared = [row["dev"] - row["grid_dev"] for row in rows if row["grid_dev"] is not None]
    if not compared:
        return "Nothing was found off the grid that the validation slice puts on the front."
    better = sum(gain > 1e-9 for gain in compared)
    return (
        f"On dev {better} of {len(compared)} found sub-networks are better than every one of the grid that costs no "
        f"more ({objective}); the mean difference of all {len(compared)}: "
        f"{100 * sum(compared) / len(compared):+.1f} points."
    )
