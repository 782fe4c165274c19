"""``limbert tune``: search the gates' widths and the exits' thresholds, and keep named operating points."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.evaluate import override_data_config
from limbert.cli.policies import ExitRuleOption, default_exit_rule
from limbert.core.config import require
from limbert.errors import CheckpointError, import_optional

if TYPE_CHECKING:
    from limbert.data.tasks import Task
    from limbert.data.tokenize import TokenizedExamples
    from limbert.evaluation.tune import PolicyCandidate
    from limbert.inference.load import LoadedCheckpoint
    from limbert.inference.policy import OperatingPoint

TUNE_NAME = "tune.jsonl"
TUNE_PLOT_NAME = "tune.png"
_EVALUATION_BATCH_SIZE = 32  # examples a batch when an operating point is measured


def tune(
    run: Annotated[
        str,
        typer.Argument(
            help="elastic model; without gates and --layers first its points are static sizes", metavar="RUN"
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
    batch_size: Annotated[int, typer.Option(help="examples a batch; results do not depend on it", min=1)] = 64,
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Find good policies on the validation slice of the training data, and save operating points in the model.

    accurate is the cheapest policy that reaches the full model's metric; balanced and fast may lose some of it. The
    model's folder receives the points (limbert.json), all that was tried (tune.jsonl), what widths and exits they
    take (policies.jsonl) and the picture (tune.png). The development set is not looked at: evaluate a point on it with
    limbert evaluate RUN --policy balanced.

    Example: limbert tune runs/mrpc --data glue/MRPC
    """
    require(0 <= balanced_drop <= 100, "balanced drop", balanced_drop, "between 0 and 100 points")
    require(0 <= fast_drop <= 100, "fast drop", fast_drop, "between 0 and 100 points")
    if not Path(run).is_dir():
        raise CheckpointError(f"no model folder at {run}")
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.core.subnet import Subnet
    from limbert.evaluation.policies import replace_policy_rows
    from limbert.evaluation.tune import choose_operating_points, pareto_policies, tune_policies
    from limbert.inference.load import load_checkpoint, load_validation_split
    from limbert.inference.policy import reject_token_level_task
    from limbert.method.early_exit import EXIT_RULES

    import_optional("matplotlib", extra="report")  # before the long work
    opened = load_checkpoint(run, device=device)
    if opened.task is None:
        raise CheckpointError(f"{run} has no limbert.json; train it with limbert train first")
    task, model = opened.task, opened.model
    reject_token_level_task(task.task_type, "tune")
    rule = exit_rule or default_exit_rule(task.task_type)
    require(rule in EXIT_RULES, "exit rule", rule, "one of " + ", ".join(EXIT_RULES))
    chosen = opt.parse_floats(widths, "--widths") or model.space.widths
    for width in chosen:
        Subnet.uniform(model.shape, width=width)  # refuses one that keeps nothing
    config = override_data_config(opened.data_config, data=data, train=train, dev=dev)
    examples = opened.tokenize(load_validation_split(opened, config))
    with show.progress_bar("searching") as advance:
        candidates = tune_policies(
            model,
            examples,
            task=task,
            widths=chosen,
            exit_rule=rule,  # type: ignore[arg-type]
            num_thresholds=thresholds,
            batch_size=batch_size,
            progress=advance,
        )
    drops = {"fast": fast_drop / 100, "balanced": balanced_drop / 100, "accurate": 0.0}
    points = choose_operating_points(candidates, metric=task.primary_metric, max_drops=drops)
    rows = _evaluate_operating_points(
        opened, examples, points, task=task, source=config.train or config.data or task.name
    )
    replace_policy_rows(run, rows)
    _save_results(run, candidates, points, metric=task.primary_metric, num_examples=len(examples))
    if as_json:
        values = {name: point.to_dict() for name, point in points.items()}
        show.print_json({"operating_points": values, "front": [one.to_dict() for one in pareto_policies(candidates)]})
        return
    shown, names = _table_rows(pareto_policies(candidates), candidates, points)
    show.stdout.print(
        f"{len(candidates)} policies on {len(examples)} examples of the validation slice; the best of them:",
        highlight=False,
    )
    show.stdout.print(show.candidates_table(shown, names, task.primary_metric))
    show.stdout.print(
        f"operating points saved in {run}/limbert.json, the picture in {run}/{TUNE_PLOT_NAME}\n"
        f"On data not looked at: limbert evaluate {run} --policy balanced",
        highlight=False,
        soft_wrap=True,
    )


def _evaluate_operating_points(
    opened: "LoadedCheckpoint",
    examples: "TokenizedExamples",
    operating_points: dict[str, "OperatingPoint"],
    *,
    task: "Task",
    source: str | None,
) -> list[dict[str, Any]]:
    """Each point run once over the examples of the search: which widths and exits it takes."""
    from limbert.cli import show
    from limbert.evaluation.policies import evaluate_policy, policy_row

    rows = []
    for name, point in operating_points.items():
        with show.progress_bar(f"measuring {name}") as advance:
            result = evaluate_policy(
                opened.model,
                {"validation": examples},
                task=task,
                policy=point.policy,
                batch_size=_EVALUATION_BATCH_SIZE,
                progress=advance,
            )
        computed_on = opened.model.network.device.type
        row = policy_row(
            name,
            result,
            split="validation",
            source=source,
            num_examples=len(examples),
            batch_size=_EVALUATION_BATCH_SIZE,
            device=computed_on,
        )
        rows.append(row)
    return rows


def _save_results(
    run: str,
    candidates: Sequence["PolicyCandidate"],
    operating_points: dict[str, "OperatingPoint"],
    *,
    metric: str,
    num_examples: int,
) -> None:
    from limbert.files import write_json_lines
    from limbert.inference.policy import save_operating_points
    from limbert.report.sections import search_picture

    rows = [candidate.to_dict() | {"metric": metric} for candidate in candidates]
    write_json_lines(Path(run) / TUNE_NAME, rows)
    points = {name: point.to_dict() for name, point in operating_points.items()}
    search_picture(rows, points, metric, num_examples).save_png(Path(run) / TUNE_PLOT_NAME)
    save_operating_points(run, operating_points)


def _table_rows(
    front: Sequence["PolicyCandidate"],
    candidates: Sequence["PolicyCandidate"],
    operating_points: dict[str, "OperatingPoint"],
) -> tuple[list["PolicyCandidate"], dict[int, str]]:
    """The front and the points by rising cost, and which row is which point."""
    wanted = {point.policy for point in operating_points.values()}
    extra = [one for one in candidates if one.policy in wanted and one not in front]
    rows = sorted([*front, *extra], key=lambda one: one.flops_share)
    names = {
        place: ", ".join(name for name, point in operating_points.items() if point.policy == row.policy)
        for place, row in enumerate(rows)
        if row.policy in wanted
    }
    return rows, names
