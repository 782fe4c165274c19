"""``limbert predict``: predictions for texts, by a sub-network or a dynamic policy."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.cli.predict_options import PredictOptions, RayOptions, ServerOptions, check_engine
from limbert.cli.predict_server import predict_on_server
from limbert.core.config import DataConfig, RuntimeConfig, config_field
from limbert.errors import import_optional

if TYPE_CHECKING:
    from limbert.inference.pipeline import Pipeline
    from limbert.inference.prediction_files import InputRows


@dataclass(frozen=True)
class _Subnet:
    subnet: str = config_field("1x1", "WIDTHxDEPTH, or a searched name (default: 1x1)")


@config_options(
    options=ConfigOptions(PredictOptions, "Input and output"),
    columns=ConfigOptions(DataConfig, "Input and output", only=("text_column", "pair_column"), as_overrides=True),
    subnet=ConfigOptions(_Subnet, "Sub-network or policy", as_overrides=True),
    policy=opt.POLICY,
    runtime=opt.RUNTIME,
    ray=ConfigOptions(RayOptions, "Ray"),
    server=ConfigOptions(ServerOptions, "Server"),
)
def predict(
    context: typer.Context,
    options: PredictOptions,
    columns: dict[str, Any],
    subnet: dict[str, str],
    policy: dict[str, Any],
    runtime: RuntimeConfig,
    ray: RayOptions,
    server: ServerOptions,
    run: Annotated[str | None, typer.Argument(help="elastic model; absent with --server", metavar="RUN")] = None,
    long_texts: opt.LongTexts = "truncate",
    batch_size: opt.BatchSize = 64,
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Predict texts from the command line or from a file, in order.

    \b
    Example: limbert predict runs/mrpc --subnet 0.25x0.5 --text "It rained." --pair "Rain fell."
    Example: limbert predict runs/mrpc --policy balanced --input pairs.tsv --output predictions.csv
    Example: zcat texts.gz | limbert predict runs/tickets --input - --top-k 3 --output - > predictions.jsonl
    Example: limbert predict runs/mrpc --engine ray --input 's3://bucket/pairs/*.parquet' --output s3://bucket/predicted
    Example: limbert predict --server http://127.0.0.1:8080 --input texts.txt
    """
    from limbert.inference.prediction_files import check_output

    check_engine(context)
    on_ray = ray.engine == "ray"
    opt.check_policy_options({} if run is None else policy, subnet)
    if options.output is not None and not on_ray:
        options = replace(options, output=check_output(options.output, options.input))
    if run is None:
        _print_predictions(*predict_on_server(server, options, columns, **subnet | policy), options, as_json=as_json)
        return
    opt.prepare_libraries(threads)
    from limbert.inference.pipeline import pipeline

    settings: dict[str, Any] = {"batch_size": batch_size, "long_texts": long_texts} | subnet | policy | vars(runtime)
    pipe = pipeline(run, device="cpu" if on_ray else device, threads=threads, **settings)
    pipe = replace(pipe, checkpoint=pipe.checkpoint.with_data_config(**columns))
    if on_ray:
        _predict_on_ray(pipe, options, ray, threads=threads, as_json=as_json)
    else:
        _print_predictions(*_predict_here(pipe, options), options, as_json=as_json)


def _predict_here(pipe: "Pipeline", options: PredictOptions) -> "tuple[InputRows, list[dict[str, Any]]]":
    from limbert.cli.console import ProgressBar
    from limbert.core.task_types import TASK_TYPE_SPECS
    from limbert.data.task_files import load_texts
    from limbert.data.task_registry import TASK_HANDLERS
    from limbert.inference.prediction_files import given_rows

    task_type = pipe.task.task_type
    if options.input is None:
        inputs = given_rows(TASK_HANDLERS[task_type].make_examples(options.text, options.pair or None))
    else:
        reader = partial(load_texts, task_type=task_type) if TASK_TYPE_SPECS[task_type].token_level else None
        inputs = options.read_input(pipe.checkpoint.data_config, read_examples=reader)
    with ProgressBar() as bar:
        predictions = pipe.predict(
            inputs.examples,
            top_k=len(pipe.task.labels) if options.scores else options.top_k,
            source=None if options.input is None else inputs.source,
            progress=partial(bar, "predicting"),
        )
    is_dynamic = pipe.policy.subnet is None
    return inputs, [row.to_dict() | (row.cost_to_dict() if is_dynamic else {}) for row in predictions]


def _predict_on_ray(
    pipe: "Pipeline", options: PredictOptions, ray: RayOptions, *, threads: int | None, as_json: bool
) -> None:
    from limbert.cli import console

    import_optional("ray", extra="scale")
    from limbert.inference.ray import predict_files

    with console.ProgressBar() as bar, redirect_stdout(sys.stderr):  # Ray prints; stdout is for results
        result = predict_files(
            pipe,
            str(options.input),
            str(options.output),
            keep_columns=options.keep,
            skip_bad_rows=options.skip_bad_rows,
            workers=ray.workers,
            threads=threads,
            progress=bar,
            **({} if ray.shard_rows is None else {"shard_rows": ray.shard_rows}),
        )
    if as_json:
        console.print_json(vars(result) | {"output": options.output})
        return
    resumed = f" ({result.resumed} from an earlier run)" if result.resumed else ""
    saved = f"Saved {result.rows} predictions in {result.shards} shards{resumed} in {options.output}"
    console.note(saved + _count_empty(result.bad_rows))


def _print_predictions(
    inputs: "InputRows", predictions: list[dict[str, Any]], options: PredictOptions, *, as_json: bool
) -> None:
    """Predictions with their rows, to a file (whole or not at all) or the terminal."""
    from limbert.cli import console
    from limbert.inference.prediction_files import is_table, write_rows

    if options.abstain_below is not None:
        from limbert.inference.predict import abstain

        predictions = [abstain(row, options.abstain_below) for row in predictions]
    rows, output = inputs.with_predictions(predictions), options.output
    if output is None or not is_table(output):
        rows = inputs.with_texts(rows)
    if output:
        write_rows(output, rows)
        saved = f"Saved {len(rows)} predictions in {'standard output' if output == '-' else output}"
        console.note(saved + _count_empty(inputs.examples.bad_rows))
    elif as_json:
        console.print_json(rows)
    else:
        for row in rows:
            texts = [text for text in (row.get("text"), row.get("pair")) if text]
            console.say(f"{_format(row)}  {' | '.join(texts)}" if texts else "(no text)")


def _count_empty(rows: int) -> str:
    return f", {rows} of them empty (no text)" if rows else ""


def _format(row: Mapping[str, Any]) -> str:
    """One prediction in one line."""
    if "scores" in row or "labels" in row:
        labels = row["scores"] if "scores" in row else row["labels"]
        return ", ".join(f"{label['label']} {label['score']:.3f}" for label in labels) or "(no label)"
    if "entities" in row:
        return ", ".join(f"{span['text']} ({span['type']} {span['score']:.3f})" for span in row["entities"]) or "(none)"
    if "words" in row:
        return " ".join(f"{word['text']}/{word['tag']}" for word in row["words"])
    name = "(abstains)" if row.get("abstain") else row.get("label", row.get("answer"))
    return f"{row['score']:.3f}" if name is None else f"{name}  {row['score']:.3f}"
