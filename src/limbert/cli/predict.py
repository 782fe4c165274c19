"""``limbert predict``: predictions for texts, by a sub-network or a dynamic policy."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli import predict_on_ray as on_ray
from limbert.cli import predict_server as on_server
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import DataConfig, RuntimeConfig, config_field
from limbert.data.text_rows import find_lone_surrogate
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.data.readers import Examples
    from limbert.inference.load import LoadedCheckpoint


@dataclass(frozen=True)
class _Inputs:
    text: tuple[str, ...] = config_field((), "text (or question); may be repeated", repeats=True)
    pair: tuple[str, ...] = config_field((), "second text, or context of a question; one for each --text", repeats=True)
    input: str | None = config_field(None, "file: CSV, TSV, JSONL, Parquet, plain lines, CoNLL or SQuAD")
    output: str | None = config_field(None, "JSONL file for the predictions (default: the terminal)")

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.input):
            raise ConfigError("Provide --text or --input")
        if self.pair and len(self.pair) != len(self.text):
            raise ConfigError(f"{len(self.pair)} --pair for {len(self.text)} --text; each text needs one")
        for part in self.text + self.pair:
            if find_lone_surrogate({"text": part}) is not None:
                raise ConfigError(f"text {part!r} is invalid Unicode; write it in UTF-8")

    def output_file(self) -> str | None:
        """The output file with ``~`` expanded; refuses one that cannot be written."""
        if not self.output:
            return None
        path = Path(self.output).expanduser()
        if self.input and path.resolve() == Path(self.input).expanduser().resolve():
            raise ConfigError(f"output {self.output} is the input; choose another file")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"the folder of output {self.output} does not exist; make it first")
        if path.is_dir():
            raise ConfigError(f"output {self.output} is a folder; write the name of a file")
        return str(path)


@dataclass(frozen=True)
class _Subnet:
    subnet: str = config_field("1x1", "WIDTHxDEPTH, a searched or a measured name (default: 1x1)")


@config_options(
    inputs=ConfigOptions(_Inputs, "Input and output"),
    columns=ConfigOptions(DataConfig, "Input and output", only=("text_column", "pair_column"), as_overrides=True),
    subnet=ConfigOptions(_Subnet, "Sub-network or policy", as_overrides=True),
    policy=opt.POLICY,
    runtime=opt.RUNTIME,
    ray=ConfigOptions(on_ray.RayOptions, "Ray", as_overrides=True),
    server=ConfigOptions(on_server.ServerOptions, "Server"),
)
def predict(
    context: typer.Context,
    inputs: _Inputs,
    columns: dict[str, Any],
    subnet: dict[str, str],
    policy: dict[str, Any],
    runtime: RuntimeConfig,
    ray: dict[str, Any],
    server: on_server.ServerOptions,
    run: Annotated[str | None, typer.Argument(help="elastic model; absent with --server", metavar="RUN")] = None,
    batch_size: opt.BatchSize = 64,
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Predict texts from the command line or from a file, in order.

    \b
    Example: limbert predict runs/mrpc --subnet 0.25x0.5 --text "It rained." --pair "Rain fell."
    Example: limbert predict runs/mrpc --policy balanced --input pairs.tsv --output predictions.jsonl
    Example: limbert predict runs/mrpc --engine ray --input 's3://bucket/pairs/*.parquet' --output s3://bucket/predicted
    Example: limbert predict --server http://127.0.0.1:8080 --input texts.txt
    """
    on_server.check_server_options(context)
    engine = ray.pop("engine", "plain")
    on_ray.check_engine_options(engine, device, ray)
    opt.check_policy_options({} if run is None else policy, subnet)
    output = inputs.output_file() if engine == "plain" else inputs.output
    if run is None:
        examples, rows = on_server.predict_on_server(
            server, inputs.text, inputs.pair, inputs.input, columns, **subnet | policy
        )
        _print_predictions(examples, rows, output, as_json)
        return
    opt.prepare_libraries(threads)
    from limbert.cli import console
    from limbert.evaluation.choose import resolve_measured_names
    from limbert.inference.compiled import open_policy, resolve_runtime
    from limbert.inference.load import load_checkpoint, warn_if_untrained
    from limbert.inference.policy import named_policy, resolve_policy
    from limbert.inference.predict import predict as run_prediction

    checkpoint = load_checkpoint(run, device="cpu" if engine == "ray" else runtime.model_device(device))
    task, model = checkpoint.trained_task, checkpoint.model
    static = subnet.get("subnet", "1x1")
    name = policy.pop("policy", None) or f"static:{resolve_measured_names(checkpoint.path, [static])[0]}"
    chosen = named_policy(name, model.record, task_type=task.task_type, **policy)
    resolve_policy(chosen, model, task_type=task.task_type)  # refuses it before the input is read
    if chosen.subnet is not None:
        warn_if_untrained(model, chosen.subnet)
    checkpoint = replace(checkpoint, data_config=replace(checkpoint.data_config, **columns))
    if engine == "ray":
        if runtime.runtime == "auto":
            subnet_or_full = model.subnet(chosen.subnet) if chosen.subnet else model.full
            runtime = replace(runtime, runtime=resolve_runtime(checkpoint, subnet_or_full, runtime, threads=threads))
        settings = vars(runtime) | {"policy": chosen, "batch_size": batch_size}
        on_ray.predict_on_ray(checkpoint, inputs.input, output, ray, threads=threads, as_json=as_json, **settings)
        return
    network = open_policy(checkpoint, chosen, runtime, threads=threads)
    examples = _load_inputs(checkpoint, inputs)
    tokens = checkpoint.tokenize(examples, cache=inputs.input is not None)
    with console.progress_bar("predicting") as progress:
        predictions = run_prediction(
            model,
            tokens,
            task=task,
            policy=chosen,
            batch_size=batch_size,
            precision=runtime.precision,
            runtime=network,
            progress=progress,
        )
    is_dynamic = chosen.subnet is None
    rows = [prediction.to_dict() | (prediction.cost_to_dict() if is_dynamic else {}) for prediction in predictions]
    _print_predictions(examples, rows, output, as_json)


def _load_inputs(checkpoint: "LoadedCheckpoint", inputs: _Inputs) -> "Examples":
    from limbert.data.load import load_texts
    from limbert.data.task_registry import TASK_HANDLERS

    task_type = checkpoint.trained_task.task_type
    if inputs.input is None:
        return TASK_HANDLERS[task_type].make_examples(inputs.text, inputs.pair or None)
    config = replace(checkpoint.data_config, skip_bad_rows=False)  # one prediction per row, or an error
    return load_texts(inputs.input, config, task_type=task_type)


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
