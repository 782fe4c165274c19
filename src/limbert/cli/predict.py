"""``limbert predict``: predictions for texts, by a sub-network or a dynamic policy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli import predict_on_ray as on_ray
from limbert.cli.policies import ExitRuleOption, ExitThreshold, PolicyName, Widths
from limbert.cli.predict_server import RemotePredictor, check_server_options
from limbert.data.text_rows import find_lone_surrogate
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.data.readers import Examples
    from limbert.inference.load import LoadedCheckpoint


def predict(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(help="elastic model; absent with --server", metavar="[RUN]")] = None,
    subnet: Annotated[
        str | None, typer.Option(help="sub-network: WIDTHxDEPTH, a found or a measured name (default: 1x1)")
    ] = None,
    policy: PolicyName = None,
    widths: Widths = None,
    exit_threshold: ExitThreshold = None,
    exit_rule: ExitRuleOption = None,
    text: Annotated[list[str] | None, typer.Option(help="text (or question); may be repeated")] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(help="the second text of a pair, or the context of a question; one for each --text"),
    ] = None,
    input: Annotated[
        str | None, typer.Option(help="file of texts: CSV, TSV, JSONL, Parquet, plain lines, CoNLL or SQuAD")
    ] = None,
    output: Annotated[str | None, typer.Option(help="JSONL file for the predictions (default: the terminal)")] = None,
    text_column: opt.TextColumn = None,
    pair_column: opt.PairColumn = None,
    batch_size: Annotated[int, typer.Option(help="texts per batch; predictions do not depend on it", min=1)] = 64,
    precision: opt.RunPrecision = "fp32",
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    engine: on_ray.EngineName = "plain",
    workers: on_ray.Workers = None,
    keep: on_ray.KeepColumns = None,
    shard_rows: on_ray.ShardRows = None,
    skip_bad_rows: on_ray.SkipBadRows = False,
    server: Annotated[
        str | None, typer.Option(help="URL of a running limbert serve to use instead of a model here")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="API key of the server", envvar="LIMBERT_API_KEY", show_default=False)
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Predict texts from the command line or from a file, in order.

    Example: limbert predict runs/mrpc --subnet 0.25x0.5 --text "It rained." --pair "Rain fell."

    Example: limbert predict runs/mrpc --policy balanced --input pairs.tsv --output predictions.jsonl

    Example: limbert predict runs/mrpc --engine ray --input 's3://bucket/pairs/*.parquet' --output s3://bucket/predicted

    Example: limbert predict --server http://127.0.0.1:8080 --input texts.txt
    """
    check_server_options(context)
    on_ray.check_engine_options(engine, device, workers, keep, shard_rows, skip_bad_rows)
    if policy is not None and subnet:
        raise ConfigError("give either --subnet or --policy; one sub-network is also --policy static:WIDTHxDEPTH")
    _check_texts(text, pair, input)
    if engine == "plain":
        output = _checked_output(output, input)
    if run is None:
        remote = RemotePredictor(str(server), api_key, subnet, policy)
        examples = remote.load_inputs(text, pair, input, text_column=text_column, pair_column=pair_column)
        _print_predictions(examples, remote.predict(examples), output, as_json)
        return
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.evaluation.choose import resolve_measured_names
    from limbert.inference.load import load_checkpoint, warn_if_untrained
    from limbert.inference.policy import named_policy, resolve_policy
    from limbert.inference.predict import predict as run_prediction
    from limbert.inference.ray import BatchPredictionConfig
    from limbert.inference.runtimes import check_precision

    checked_precision = check_precision(precision)
    checkpoint = load_checkpoint(run, device="cpu" if engine == "ray" else device)
    task, model = checkpoint.trained_task, checkpoint.model
    chosen = named_policy(
        policy or f"static:{resolve_measured_names(checkpoint.path, [subnet or '1x1'])[0]}",
        model.record,
        task_type=task.task_type,
        widths=opt.parse_floats(widths, "--widths"),
        exit_threshold=exit_threshold,
        exit_rule=exit_rule,
    )
    resolve_policy(chosen, model, task_type=task.task_type)  # refuses it before the input is read
    if chosen.subnet is not None:
        warn_if_untrained(model, chosen.subnet)
    if engine == "ray":
        on_ray.predict_on_ray(
            checkpoint.path,
            checkpoint,
            input=input,
            output=output,
            text_column=text_column,
            pair_column=pair_column,
            keep_columns=keep,
            shard_rows=shard_rows,
            workers=workers,
            threads=threads,
            as_json=as_json,
            config=BatchPredictionConfig(chosen, checked_precision, batch_size, skip_bad_rows),
        )
        return
    examples = _load_inputs(checkpoint, text, pair, input, {"text_column": text_column, "pair_column": pair_column})
    tokens = checkpoint.tokenize(examples, cache=input is not None)
    with show.progress_bar("predicting") as progress:
        predictions = run_prediction(
            model,
            tokens,
            task=task,
            policy=chosen,
            batch_size=batch_size,
            precision=checked_precision,
            progress=progress,
        )
    is_dynamic = chosen.subnet is None
    rows = [one.to_dict() | (one.cost_to_dict() if is_dynamic else {}) for one in predictions]
    _print_predictions(examples, rows, output, as_json)


def _check_texts(text: list[str] | None, pair: list[str] | None, input: str | None) -> None:
    if bool(text) == bool(input):
        raise ConfigError("provide --text or --input")
    if pair and len(pair) != len(text or []):
        raise ConfigError(f"{len(pair)} --pair for {len(text or [])} --text; each text needs one")
    for part in [*(text or ()), *(pair or ())]:
        if find_lone_surrogate({"text": part}) is not None:
            raise ConfigError(f"text {part!r} is invalid Unicode; write it in UTF-8")


def _checked_output(output: str | None, input: str | None) -> str | None:
    """The output file with ``~`` expanded; refuses one that cannot be written."""
    if not output:
        return output
    path = Path(output).expanduser()
    if input and path.resolve() == Path(input).expanduser().resolve():
        raise ConfigError(f"output {output} is the input; choose another file")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"the folder of output {output} does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"output {output} is a folder; write the name of a file")
    return str(path)


def _load_inputs(
    checkpoint: "LoadedCheckpoint",
    text: list[str] | None,
    pair: list[str] | None,
    path: str | None,
    columns: dict[str, str | None],
) -> "Examples":
    from dataclasses import replace

    from limbert.data.load import load_texts
    from limbert.data.task_registry import TASK_HANDLERS

    task_type = checkpoint.trained_task.task_type
    if path is None:
        return TASK_HANDLERS[task_type].make_examples(text or (), pair)
    given = {name: value for name, value in columns.items() if value}
    data_config = replace(checkpoint.data_config, skip_bad_rows=False, **given)  # type: ignore[arg-type]
    return load_texts(path, data_config, task_type=task_type)  # one prediction per row, or an error


def _print_predictions(
    examples: "Examples", predictions: list[dict[str, Any]], output: str | None, as_json: bool
) -> None:
    """Predictions with their texts, to a file (whole or not at all) or the terminal."""
    from limbert.cli import show
    from limbert.files import atomic_file

    pairs = examples.pairs
    inputs = [
        {"text": text} if pairs is None else {"text": text, "pair": pairs[index]}
        for index, text in enumerate(examples.texts)
    ]
    rows = [fields | values for fields, values in zip(inputs, predictions, strict=True)]
    if output:
        with atomic_file(output) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        show.stderr.print(f"Saved {len(rows)} predictions in {output}", highlight=False, soft_wrap=True)
    elif as_json:
        show.print_json(rows)
    else:
        for row in rows:
            shown = " | ".join(part for part in (row["text"], row.get("pair")) if part)
            show.stdout.print(f"{show.format_prediction(row)}  {shown}", markup=False, highlight=False, soft_wrap=True)
