"""``limbert evaluate``: metrics and costs of sub-networks, or of a policy, on labelled data."""

from typing import Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import RuntimeConfig


@config_options(
    data=opt.data_options("task", "data", "dev", "text_column", "pair_column", "label_column", "skip_bad_rows"),
    policy=opt.POLICY,
    runtime=ConfigOptions(RuntimeConfig, "Runtime", only=("runtime", "precision"), as_overrides=True),
)
def evaluate(
    run: Annotated[str, typer.Argument(help="elastic model, or a stock model fine-tuned on the task", metavar="RUN")],
    data: dict[str, Any],
    policy: dict[str, Any],
    runtime: dict[str, str],
    subnet: Annotated[
        list[str] | None,
        typer.Option(
            help="WIDTHxDEPTH, or a searched name; may be repeated (default: all)",
            rich_help_panel="Sub-network or policy",
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="layers a depth keeps: first or spread (default: the model's)")
    ] = None,
    long_texts: opt.LongTexts = "truncate",
    batch_size: opt.BatchSize = 64,
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Evaluate sub-networks of a trained model, or a policy that chooses width and depth per input, on the dev set.

    Data and columns default to those of the training. A stock model is sliced without elastic training, as
    a baseline. The layer-by-layer result of an operating point is also saved in the run (policies.jsonl).

    \b
    Example: limbert evaluate runs/mrpc --data glue/MRPC --subnet 0.5x0.75 --subnet 0.25x0.5
    Example: limbert evaluate runs/mrpc --subnet 0.5x0.75 --runtime openvino --precision int8
    Example: limbert evaluate runs/mrpc --policy width+depth --widths 0.5,0.75,0.75,0.75 --exit-threshold 0.15
    """
    opt.check_policy_options(policy, subnet)
    opt.prepare_libraries(threads)
    from limbert.cli import console
    from limbert.evaluation import evaluate as evaluation
    from limbert.evaluation.results import PolicyResult

    options: dict[str, Any] = {"layers": layers, "long_texts": long_texts, "device": device} | policy | runtime | data
    with console.ProgressBar() as progress:
        results = evaluation.evaluate(run, subnets=subnet or (), batch_size=batch_size, progress=progress, **options)
    of_policy = isinstance(results[0], PolicyResult)
    if as_json:
        rows = [result.to_dict() for result in results]
        console.print_json(rows[0] if of_policy else rows)
    elif isinstance(results[0], PolicyResult):
        console.print_policy_result(results[0], batch_size=batch_size)
    else:
        console.print_results(results)  # type: ignore[arg-type]  # all of one type
