"""``limbert tune``: search the gates' widths and the exits' thresholds, and save operating points."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.verb_config import TuneConfig
from limbert.errors import import_optional

if TYPE_CHECKING:
    from limbert.evaluation.tune import PolicyCandidate, TuneResult

TUNE_PLOT_NAME = "tune.png"


@config_options(data=opt.data_options("data", "train", "dev"), config=ConfigOptions(TuneConfig))
def tune(
    run: Annotated[
        str,
        typer.Argument(
            help="elastic model; without gates and exits only static sub-networks and cascades are tried",
            metavar="RUN",
        ),
    ],
    data: dict[str, Any],
    config: TuneConfig,
    batch_size: opt.BatchSize = 64,
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Search policies on the validation split of the training data, and save operating points in the run.

    accurate is the cheapest policy that reaches the full model's metric; balanced and fast may lose some of it. Saved
    in the run: the operating points and temperatures (limbert.json), all policies that were tried (tune.jsonl), the
    widths and exits that the points use (policies.jsonl) and a plot (tune.png). The development set is not used:
    evaluate a point on it with limbert evaluate RUN --policy balanced.

    \b
    Example: limbert tune runs/mrpc --data glue/MRPC
    Example: limbert tune runs/mrpc --data glue/MRPC --max-drop 1 --confidence 0.9
    """
    opt.prepare_libraries(threads)
    from limbert.cli import console
    from limbert.evaluation import tune as tuning
    from limbert.report.sections import search_picture

    import_optional("matplotlib", extra="report")  # before the long work
    settings: dict[str, Any] = vars(config) | data
    with console.ProgressBar() as progress:
        result = tuning.tune(run, batch_size=batch_size, device=device, progress=progress, **settings)
    folder = Path(run).expanduser()
    candidates = [candidate.to_dict() for candidate in result.candidates]
    points = {name: point.to_dict() for name, point in result.operating_points.items()}
    search_picture(candidates, points, result.metric, result.num_examples).save_png(folder / TUNE_PLOT_NAME)
    front = tuning.pareto_policies(result.candidates)
    if as_json:
        values = {"operating_points": points, "front": [candidate.to_dict() for candidate in front]}
        console.print_json(values | {"standard_errors": result.standard_errors})
        return
    console.say(
        f"Pareto front of {len(result.candidates)} policies on {result.num_examples} examples of the validation split:"
    )
    rows = _table_rows(front, result)
    named = [index for index, row in enumerate(rows) if row[0]]
    header = ["operating point", "policy", "FLOPs of full", result.metric, "standard error"]
    console.print_table(header, rows, text_columns=2, bold=named, compact=True)
    if tuning.GUARANTEED in points:
        console.say(
            f"guaranteed: with probability {config.confidence:g} its accuracy on new data from the same "
            f"distribution is at most {config.max_drop:g} points below the full model's."
        )
    console.say(
        f"Saved the operating points in {run}/limbert.json and the plot in {run}/{TUNE_PLOT_NAME}.\n"
        f"On the development set: limbert evaluate {run} --policy balanced"
    )


def _table_rows(front: "list[PolicyCandidate]", result: "TuneResult") -> list[list[str]]:
    """The front and the operating points by cost."""
    lines = {candidate.policy: (candidate.flops_share, candidate.metric_value) for candidate in front}
    points = result.operating_points
    lines |= {point.policy: (point.flops_share, point.value) for point in points.values()}
    rows = []
    for policy, (share, value) in sorted(lines.items(), key=lambda line: line[1]):
        names = [name for name, point in points.items() if point.policy == policy]
        error = f"{100 * result.standard_errors[names[0]]:.1f}" if names else ""
        rows.append([", ".join(names), str(policy), f"{100 * share:.1f} %", f"{100 * value:.1f}", error])
    return rows
