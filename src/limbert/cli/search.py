"""``limbert search``: sub-networks off the grid, each layer with its own heads and neurons."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt

if TYPE_CHECKING:
    from limbert.evaluation.search import SearchResult


def search(
    run: Annotated[str, typer.Argument(help="elastic model", metavar="RUN")],
    data: opt.Data = None,
    train: opt.TrainFile = None,
    dev: opt.DevFile = None,
    objective: Annotated[str, typer.Option(help="the cost to weigh the metric against: flops or latency")] = "flops",
    trials: Annotated[int, typer.Option(help="different sub-networks to evaluate, the grid included", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="seed of the optimiser")] = 42,
    batch: Annotated[int, typer.Option(help="latency: texts per forward pass", min=1)] = 1,
    tokens: Annotated[
        int | None, typer.Option(help="latency: tokens per text (default: the median of the data)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="examples per batch; results do not depend on it", min=1)] = 64,
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Search sub-networks off the grid of widths and depths: any layers, each with its own heads and neurons.

    NSGA-II (optuna) weighs the metric on the validation split of the training data against the cost, beginning with
    the grid. If interrupted, run the same command again to resume; more --trials continue a finished search. The best
    are saved in the run by name, for evaluate, predict and profile, and evaluated on the development set, which
    selects nothing.

    Example: limbert search runs/mrpc --data glue/MRPC --trials 200
    """
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.evaluation import search as searching

    with show.titled_progress_bar() as progress:
        result = searching.search(
            run,
            objective=objective,  # type: ignore[arg-type]  # checked there
            trials=trials,
            seed=seed,
            latency_batch=batch,
            latency_tokens=tokens,
            batch_size=batch_size,
            progress=progress,
            data=data,
            train=train,
            dev=dev,
        )
    if as_json:
        show.print_json({"trials": result.trials, "objective": result.objective, "front": result.front})
        return
    show.stdout.print(f"Pareto front of {result.trials} sub-networks on the validation split, with its metric on dev:")
    show.stdout.print(_front_table(result))
    new = [row for row in result.front if not row["grid"]]
    show.stdout.print(_compare_with_grid(new, objective), highlight=False, soft_wrap=True)
    if new:
        show.stdout.print(f"Saved in {run}/limbert.json. Next: limbert evaluate {run} --subnet {new[-1]['subnet']}")


def _front_table(result: "SearchResult") -> Any:
    from rich.table import Table

    table, metric = Table(header_style="bold"), result.metric
    for name in ("sub-network", "layers"):
        table.add_column(name, no_wrap=True)
    for name in (
        "mean heads",
        f"{result.objective} of full",
        f"{metric}, validation",
        f"{metric}, dev",
        "best of grid, dev",
    ):
        table.add_column(name, justify="right")
    for row in result.front:
        heads = f"{sum(row['heads']) / len(row['heads']):.1f}"
        values = ["" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("validation", "dev", "grid_dev")]
        cells = row["subnet"], _format_ranges(row["layers"]), heads, f"{100 * row['cost_share']:.1f} %", *values
        table.add_row(*cells, style="dim" if row["grid"] else "")
    return table


def _format_ranges(layers: Sequence[int]) -> str:
    """Indices with consecutive ones joined: ``0-3 5``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][-1] == layer - 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return " ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def _compare_with_grid(rows: Sequence[dict[str, Any]], objective: str) -> str:
    """How the new sub-networks compare on dev with the best of the grid at no more cost."""
    gains = [row["dev"] - row["grid_dev"] for row in rows if row["grid_dev"] is not None]
    if not gains:
        return "No sub-network off the grid is on the front."
    better = sum(gain > 1e-9 for gain in gains)
    return (
        f"On dev {better} of {len(gains)} new sub-networks beat every sub-network of the grid at no more cost "
        f"({objective}); mean difference: {100 * sum(gains) / len(gains):+.1f} points."
    )
