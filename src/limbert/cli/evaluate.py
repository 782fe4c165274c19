"""``limbert evaluate``: metrics and costs of sub-networks, or of a policy, on labelled data."""

from typing import Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.policies import ExitRuleOption, ExitThreshold, PolicyName, Widths, check_policy_options


def evaluate(
    run: Annotated[str, typer.Argument(help="elastic model, or a stock model fine-tuned on the task", metavar="RUN")],
    subnet: Annotated[
        list[str] | None,
        typer.Option(help="sub-network: WIDTHxDEPTH, a found or a measured name; may be repeated (default: all)"),
    ] = None,
    task: opt.TaskName = None,
    data: opt.Data = None,
    dev: opt.DevFile = None,
    text_column: opt.TextColumn = None,
    pair_column: opt.PairColumn = None,
    label_column: opt.LabelColumn = None,
    skip_bad_rows: opt.SkipBadRows = False,
    layers: Annotated[str | None, typer.Option(help="layers a depth keeps: first or spread (default: model's)")] = None,
    policy: PolicyName = None,
    widths: Widths = None,
    exit_threshold: ExitThreshold = None,
    exit_rule: ExitRuleOption = None,
    batch_size: Annotated[int, typer.Option(help="examples per batch; only the time depends on it", min=1)] = 64,
    precision: opt.RunPrecision = "fp32",
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Evaluate sub-networks of a trained model, or a policy that chooses width and depth per input, on the dev set.

    Data and columns default to those of the training. A stock model is sliced as if it were elastic: the untrained
    control. The layer-by-layer result of an operating point is also saved in the run (policies.jsonl).

    Example: limbert evaluate runs/mrpc --data glue/MRPC --subnet 0.5x0.75 --subnet 0.25x0.5

    Example: limbert evaluate runs/mrpc --policy width+depth --widths 0.5,0.75,0.75,0.75 --exit-threshold 0.15
    """
    check_policy_options(policy, subnet, widths, exit_threshold, exit_rule)
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.evaluation import evaluate as evaluation
    from limbert.evaluation.results import PolicyResult

    with show.titled_progress_bar() as progress:
        results = evaluation.evaluate(
            run,
            subnets=subnet or (),
            policy=policy,
            widths=opt.parse_floats(widths, "--widths"),
            exit_threshold=exit_threshold,
            exit_rule=exit_rule,
            layers=layers,
            batch_size=batch_size,
            precision=precision,
            device=device,
            progress=progress,
            task=task,
            data=data,
            dev=dev,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            skip_bad_rows=skip_bad_rows,
        )
    first = results[0]
    if isinstance(first, PolicyResult):
        if as_json:
            show.print_json(first.to_dict())
        else:
            show.print_policy_result(first, batch_size=batch_size)
    elif as_json:
        show.print_json([result.to_dict() for result in results])
    else:
        show.stdout.print(show.results_table(results))  # type: ignore[arg-type]  # all of one type
