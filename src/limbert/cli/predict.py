"""``limbert predict``: predictions for texts, by a sub-network or a dynamic policy."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli import predict_on_ray as on_ray
from limbert.cli import predict_server as on_server
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.data.table import find_lone_surrogate
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.data.readers import Examples
    from limbert.inference.load import LoadedCheckpoint

_INPUT, _SERVER = "Input and output", "Server"


@config_options(
    policy=opt.POLICY,
    columns=ConfigOptions(opt.DataConfig, _INPUT, only=("text_column", "pair_column"), as_overrides=True),
    ray=ConfigOptions(on_ray.RayOptions, "Ray", as_overrides=True),
)
def predict(
    context: typer.Context,
    policy: dict[str, Any],
    columns: dict[str, Any],
    ray: dict[str, Any],
    run: Annotated[str | None, typer.Argument(help="elastic model; absent with --server", metavar="[RUN]")] = None,
    subnet: Annotated[
        str | None,
        typer.Option(
            help="WIDTHxDEPTH, a searched or a measured name (default: 1x1)", rich_help_panel="Sub-network or policy"
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="text (or question); may be repeated", rich_help_panel=_INPUT)
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(help="second text, or context of a question; one for each --text", rich_help_panel=_INPUT),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(help="file: CSV, TSV, JSONL, Parquet, plain lines, CoNLL or SQuAD", rich_help_panel=_INPUT),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="JSONL file for the predictions (default: the terminal)", rich_help_panel=_INPUT),
    ] = None,
    batch_size: opt.BatchSize = 64,
    precision: opt.RunPrecision = "fp32",
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="plain (this process) or ray (workers on this machine, or on $RAY_ADDRESS)", rich_help_panel="Ray"
        ),
    ] = "plain",
    server: Annotated[
        str | None, typer.Option(help="URL of a running limbert serve, instead of RUN", rich_help_panel=_SERVER)
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="API key of the server", envvar="LIMBERT_API_KEY", rich_help_panel=_SERVER)
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Predict texts from the command line or from a file, in order.

    Example: limbert predict runs/mrpc --subnet 0.25x0.5 --text "It rained." --pair "Rain fell."

    Example: limbert predict runs/mrpc --policy balanced --input pairs.tsv --output predictions.jsonl

    Example: limbert predict runs/mrpc --engine ray --input 's3://bucket/pairs/*.parquet' --output s3://bucket/predicted

    Example: limbert predict --server http://127.0.0.1:8080 --input texts.txt
    """
    on_server.check_server_options(context)
    on_ray.check_engine_options(engine, device, ray)
    if "policy" in policy and subnet:
        raise ConfigError("provide either --subnet or --policy; one sub-network is also --policy static:WIDTHxDEPTH")
    _check_texts(text, pair, input)
    if engine == "plain":
        output = _check_output(output, input)
    if run is None:
        examples, rows = on_server.predict_on_server(
            str(server), api_key, text, pair, input, columns, subnet=subnet, policy=policy.get("policy")
        )
        _print_predictions(examples, rows, output, as_json)
        return
    opt.prepare_libraries(threads)
    from limbert.cli import console
    from limbert.evaluation.choose import resolve_measured_names
    from limbert.inference.load import load_checkpoint, warn_if_untrained
    from limbert.inference.policy import named_policy, resolve_policy
    from limbert.inference.predict import predict as run_prediction
    from limbert.inference.runtimes import check_precision

    checked_precision = check_precision(precision)
    checkpoint = load_checkpoint(run, device="cpu" if engine == "ray" else device)
    task, model = checkpoint.trained_task, checkpoint.model
    name = policy.pop("policy", None) or f"static:{resolve_measured_names(checkpoint.path, [subnet or '1x1'])[0]}"
    chosen = named_policy(name, model.record, task_type=task.task_type, **policy)
    resolve_policy(chosen, model, task_type=task.task_type)  # refuses it before the input is read
    if chosen.subnet is not None:
        warn_if_untrained(model, chosen.subnet)
    checkpoint = replace(checkpoint, data_config=replace(checkpoint.data_config, **columns))
    if engine == "ray":
        settings = {"policy": chosen, "precision": checked_precision, "batch_size": batch_size}
        on_ray.predict_on_ray(checkpoint, input, output, ray, threads=threads, as_json=as_json, **settings)
        return
    examples = _load_inputs(checkpoint, text, pair, input)
    tokens = checkpoint.tokenize(examples, cache=input is not None)
    with console.progress_bar("predicting") as progress:
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
    rows = [prediction.to_dict() | (prediction.cost_to_dict() if is_dynamic else {}) for prediction in predictions]
    _print_predictions(examples, rows, output, as_json)


def _check_texts(text: list[str] | None, pair: list[str] | None, input: str | None) -> None:
    if bool(text) == bool(input):
        raise ConfigError("Provide --text or --input")
    if pair and len(pair) != len(text or []):
        raise ConfigError(f"{len(pair)} --pair for {len(text or [])} --text; each text needs one")
    for part in [*(text or ()), *(pair or ())]:
        if find_lone_surrogate({"text": part}) is not None:
            raise ConfigError(f"text {part!r} is invalid Unicode; write it in UTF-8")


def _check_output(output: str | None, input: str | None) -> str | None:
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
    checkpoint: "LoadedCheckpoint", text: list[str] | None, pair: list[str] | None, path: str | None
) -> "Examples":
    from limbert.data.load import load_texts
    from limbert.data.task_registry import TASK_HANDLERS

    task_type = checkpoint.trained_task.task_type
    if path is None:
        return TASK_HANDLERS[task_type].make_examples(text or (), pair)
    config = replace(checkpoint.data_config, skip_bad_rows=False)  # one prediction per row, or an error
    return load_texts(path, config, task_type=task_type)


def _print_predictions(
    examples: "Examples", predictions: list[dict[str, Any]], output: str | None, as_json: bool
) -> None:
    """Predictions with their texts, to a file (whole or not at all) or the terminal."""
    from limbert.cli import console
    from limbert.files import atomic_file

    texts, pairs = examples.texts, examples.pairs
    inputs = [{"text": text} if pairs is None else {"text": text, "pair": pairs[i]} for i, text in enumerate(texts)]
    rows = [fields | values for fields, values in zip(inputs, predictions, strict=True)]
    if output:
        with atomic_file(output) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        console.note(f"Saved {len(rows)} predictions in {output}")
    elif as_json:
        console.print_json(rows)
    else:
        for row in rows:
            console.say(f"{_format(row)}  {' | '.join(part for part in (row['text'], row.get('pair')) if part)}")


def _format(row: Mapping[str, Any]) -> str:
    """One prediction in one line."""
    if "labels" in row:
        return ", ".join(f"{label['label']} {label['score']:.3f}" for label in row["labels"]) or "(no label)"
    if "entities" in row:
        return ", ".join(f"{span['text']} ({span['type']} {span['score']:.3f})" for span in row["entities"]) or "(none)"
    if "words" in row:
        return " ".join(f"{word['text']}/{word['tag']}" for word in row["words"])
    name = row.get("label", row.get("answer"))
    return f"{row['score']:.3f}" if name is None else f"{name}  {row['score']:.3f}"
