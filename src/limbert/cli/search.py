"""``limbert search``: sub-networks off the grid, each layer with its own heads and neurons."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.verb_config import SearchConfig

if TYPE_CHECKING:
    from limbert.evaluation.search import SearchResult


@config_options(data=opt.data_options("data", "train", "dev"), config=ConfigOptions(SearchConfig))
def search(
    run: opt.Run,
    data: dict[str, Any],
    config: SearchConfig,
    batch_size: opt.BatchSize = 64,
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
    from limbert.cli import console
    from limbert.evaluation import search as searching

    settings: dict[str, Any] = vars(config) | data
    with console.ProgressBar() as progress:
        result = searching.search(run, batch_size=batch_size, progress=progress, **settings)
    if as_json:
        console.print_json(vars(result))
        return
    console.say(f"Pareto front of {result.trials} sub-networks on the validation split, with its metric on dev:")
    _print_front(result)
    new = [row for row in result.front if not row["grid"]]
    gains = [row["dev"] - row["grid_dev"] for row in new if row["grid_dev"] is not None]
    if gains:
        console.say(
            f"On dev {sum(gain > 1e-9 for gain in gains)} of {len(gains)} new sub-networks beat every sub-network of "
            f"the grid at no more cost ({config.objective}); mean difference: "
            f"{100 * sum(gains) / len(gains):+.1f} points."
        )
    else:
        console.say("No sub-network off the grid is on the front.")
    if new:
        console.say(f"Saved in {run}/limbert.json. Next: limbert evaluate {run} --subnet {new[-1]['subnet']}")


def _print_front(result: "SearchResult") -> None:
    from limbert.cli.console import print_table

    metric, rows = result.metric, []
    for row in result.front:
        heads = f"{sum(row['heads']) / len(row['heads']):.1f}"
        values = ["" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("validation", "dev", "grid_dev")]
        rows.append([row["subnet"], _format_ranges(row["layers"]), heads, f"{100 * row['cost_share']:.1f} %", *values])
    header = ["sub-network", "layers", "mean heads", f"{result.objective} of full", f"{metric}, validation"]
    grid = [index for index, row in enumerate(result.front) if row["grid"]]
    print_table([*header, f"{metric}, dev", "best of grid, dev"], rows, text_columns=2, dim=grid)


def _format_ranges(layers: Sequence[int]) -> str:
    """Indices with consecutive ones joined: ``0-3 5``."""
    runs = itertools.groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])
    spans = [[layer for _, layer in pairs] for _, pairs in runs]
    return " ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
