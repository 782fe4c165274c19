"""``limbert tune``: search the gates' widths and the exits' thresholds, and save operating points."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.policies import ExitRuleOption
from limbert.errors import import_optional

if TYPE_CHECKING:
    from limbert.evaluation.tune import PolicyCandidate, TuneResult

TUNE_PLOT_NAME = "tune.png"


def tune(
    run: Annotated[
        str,
        typer.Argument(
            help="elastic model; without gates and --layers first its operating points are single sub-networks",
            metavar="RUN",
        ),
    ],
    data: opt.Data = None,
    train: opt.TrainFile = None,
    dev: opt.DevFile = None,
    widths: Annotated[
        str | None,
        typer.Option(help="widths that gates' choices may run at, such as 0.25,0.5,1 (default: the model's)"),
    ] = None,
    exit_rule: ExitRuleOption = None,
    thresholds: Annotated[int, typer.Option(help="exit thresholds tried for each choice of widths", min=1)] = 12,
    balanced_drop: Annotated[
        float, typer.Option(help="how much of the metric 'balanced' may lose to the full model, in points of 100")
    ] = 1.0,
    fast_drop: Annotated[
        float, typer.Option(help="how much of the metric 'fast' may lose to the full model, in points of 100")
    ] = 3.0,
    batch_size: Annotated[int, typer.Option(help="examples per batch; results do not depend on it", min=1)] = 64,
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Search policies on the validation split of the training data, and save operating points in the run.

    accurate is the cheapest policy that reaches the full model's metric; balanced and fast may lose some of it. Saved
    in the run: the operating points (limbert.json), all policies that were tried (tune.jsonl), the widths and exits
    that the points use (policies.jsonl) and a plot (tune.png). The development set is not used: evaluate a point on it
    with limbert evaluate RUN --policy balanced.

    Example: limbert tune runs/mrpc --data glue/MRPC
    """
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.evaluation import tune as tuning
    from limbert.report.sections import search_picture

    import_optional("matplotlib", extra="report")  # before the long work
    with show.titled_progress_bar() as progress:
        result = tuning.tune(
            run,
            widths=opt.parse_floats(widths, "--widths") or (),
            exit_rule=exit_rule,  # type: ignore[arg-type]  # checked there
            num_thresholds=thresholds,
            balanced_drop=balanced_drop,
            fast_drop=fast_drop,
            batch_size=batch_size,
            device=device,
            progress=progress,
            data=data,
            train=train,
            dev=dev,
        )
    folder = Path(run).expanduser()
    rows = [candidate.to_dict() for candidate in result.candidates]
    points = {name: point.to_dict() for name, point in result.operating_points.items()}
    search_picture(rows, points, result.metric, result.num_examples).save_png(folder / TUNE_PLOT_NAME)
    front = tuning.pareto_policies(result.candidates)
    if as_json:
        show.print_json({"operating_points": points, "front": [candidate.to_dict() for candidate in front]})
        return
    shown, names = _table_rows(front, result)
    show.stdout.print(
        f"Pareto front of {len(result.candidates)} policies on {result.num_examples} examples of the validation split:",
        highlight=False,
    )
    show.stdout.print(show.candidates_table(shown, names, result.metric))
    show.stdout.print(
        f"Saved the operating points in {run}/limbert.json and the plot in {run}/{TUNE_PLOT_NAME}.\n"
        f"On the development set: limbert evaluate {run} --policy balanced",
        highlight=False,
        soft_wrap=True,
    )


def _table_rows(front: "list[PolicyCandidate]", result: "TuneResult") -> "tuple[list[PolicyCandidate], dict[int, str]]":
    """The front and the operating points by cost, and the names of the points by the index of their row."""
    by_policy = {point.policy: name for name, point in result.operating_points.items()}
    rows = [candidate for candidate in result.candidates if candidate.policy in by_policy or candidate in front]
    rows.sort(key=lambda candidate: candidate.flops_share)
    names = {
        index: ", ".join(name for name, point in result.operating_points.items() if point.policy == row.policy)
        for index, row in enumerate(rows)
        if row.policy in by_policy
    }
    return rows, names
