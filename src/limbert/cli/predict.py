"""``limbert predict``: answers for texts, by a sub-network or a dynamic policy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli import predict_on_ray as on_ray
from limbert.cli.policies import ExitRuleOption, ExitThreshold, PolicyName, Widths, policy_from_options
from limbert.cli.predict_server import RemotePredictor, check_server_options
from limbert.data.table import find_lone_surrogate
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.core.config import TaskType
    from limbert.data.readers import Examples


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
    text: Annotated[list[str] | None, typer.Option(help="a text (or a question), may be repeated")] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(help="the second text of a pair, or the context of a question; one for each --text"),
    ] = None,
    input: Annotated[
        str | None, typer.Option(help="file of texts: CSV, TSV, JSONL, Parquet, plain lines, CoNLL or SQuAD")
    ] = None,
    output: Annotated[str | None, typer.Option(help="JSONL file for the answers (default: the terminal)")] = None,
    text_column: opt.TextColumn = None,
    pair_column: opt.PairColumn = None,
    batch_size: Annotated[int, typer.Option(help="texts a batch; answers do not depend on it", min=1)] = 64,
    precision: opt.RunPrecision = "fp32",
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    engine: on_ray.EngineName = "plain",
    workers: on_ray.Workers = None,
    keep: on_ray.KeepColumns = None,
    shard_rows: on_ray.ShardRows = None,
    skip_bad_rows: on_ray.SkipBadRows = False,
    server: Annotated[str | None, typer.Option(help="ask a running limbert serve at this URL instead")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="key that the server asks for", envvar="LIMBERT_API_KEY", show_default=False)
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Answer texts from the command line or from a file, in order.

    Example: limbert predict runs/mrpc --subnet 0.25x0.5 --text "It rained." --pair "Rain fell."

    Example: limbert predict runs/mrpc --policy balanced --input pairs.tsv --output answers.jsonl

    Example: limbert predict runs/mrpc --engine ray --input 's3://bucket/pairs/*.parquet' --output s3://bucket/answers

    Example: limbert predict --server http://127.0.0.1:8080 --input texts.txt
    """
    check_server_options(context)
    on_ray.check_engine_options(engine, device, workers, keep, shard_rows, skip_bad_rows)
    if policy is not None and subnet:
        raise ConfigError("give either --subnet or --policy; one size is --policy static:WIDTHxDEPTH")
    if bool(text) == bool(input):
        raise ConfigError("give either --text or --input")
    if pair and len(pair) != len(text or []):
        raise ConfigError(f"{len(pair)} --pair for {len(text or [])} --text; each text needs one")
    for part in [*(text or ()), *(pair or ())]:
        if find_lone_surrogate({"text": part}) is not None:
            raise ConfigError(f"text {part!r} is not UTF-8")
    if engine == "plain" and output and input and Path(output).resolve() == Path(input).resolve():
        raise ConfigError(f"output {output} is the input; choose another file")
    if engine == "plain" and output and not Path(output).absolute().parent.is_dir():
        raise ConfigError(f"the folder of output {output} does not exist")
    if engine == "plain" and output and Path(output).is_dir():
        raise ConfigError(f"output {output} is a folder; write the name of a file")
    if run is None:
        asked = RemotePredictor(str(server), api_key, subnet, policy)
        examples = asked.load_inputs(text, pair, input, text_column=text_column, pair_column=pair_column)
        _print_predictions(
            [_input_fields(examples, index) | answer for index, answer in enumerate(asked.predict(examples))],
            output,
            as_json,
        )
        return
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.core.config import require
    from limbert.data.tokenize import evaluation_batches
    from limbert.errors import CheckpointError
    from limbert.evaluation.choose import resolve_measured_names
    from limbert.inference.batch.request import BatchPredictionConfig
    from limbert.inference.load import load_checkpoint
    from limbert.inference.policy import resolve_policy
    from limbert.inference.predict import predict as run_prediction

    require(precision in ("fp32", "bf16"), "precision", precision, "fp32 or bf16")
    opened = load_checkpoint(run, device="cpu" if engine == "ray" else device)
    if opened.task is None:
        what = "is an encoder without a task" if opened.model.record else "has no limbert.json"
        raise CheckpointError(f"{run} {what}; train it with limbert train first")
    chosen = policy_from_options(
        policy or f"static:{resolve_measured_names(run, [subnet or '1x1'])[0]}",
        record=opened.model.record,
        task_type=opened.task.task_type,
        widths=widths,
        exit_threshold=exit_threshold,
        exit_rule=exit_rule,
    )
    resolve_policy(chosen, opened.model, task_type=opened.task.task_type)  # refuses early what the model cannot do
    if chosen.subnet is not None:
        show.warn_if_untrained(opened.model, chosen.subnet)
    if engine == "ray":
        on_ray.predict_on_ray(
            run,
            opened,
            input=input,
            output=output,
            text_column=text_column,
            pair_column=pair_column,
            keep_columns=keep,
            shard_rows=shard_rows,
            workers=workers,
            threads=threads,
            as_json=as_json,
            request=BatchPredictionConfig(chosen, precision, batch_size, skip_bad_rows),  # type: ignore[arg-type]
        )
        return
    named = {"text_column": text_column, "pair_column": pair_column}
    examples = _load_inputs(text, pair, input, named, task_type=opened.task.task_type, data_config=opened.data_config)
    tokens = opened.tokenize(examples, cache=input is not None)
    batches = len(evaluation_batches(tokens.lengths, batch_size=batch_size))
    with show.progress_bar("answering") as advance:
        done = 0

        def after_batch() -> None:
            nonlocal done
            done += 1
            advance(done, batches)

        answers = run_prediction(
            opened.model,
            tokens,
            task=opened.task,
            policy=chosen,
            batch_size=batch_size,
            precision=precision,  # type: ignore[arg-type]
            after_batch=after_batch,
        )
    dynamic = chosen.subnet is None
    rows = [
        _input_fields(examples, index) | answer.to_dict() | (answer.cost_to_dict() if dynamic else {})
        for index, answer in enumerate(answers)
    ]
    _print_predictions(rows, output, as_json)


def _print_predictions(rows: list[dict[str, Any]], output: str | None, as_json: bool) -> None:
    from limbert.cli import show

    if output:
        _write_json_lines(Path(output), rows)
        show.stderr.print(f"{len(rows)} answers in {output}", highlight=False, soft_wrap=True)
    elif as_json:
        show.print_json(rows)
    else:
        for row in rows:
            shown = " | ".join(part for part in (row["text"], row.get("pair")) if part)
            show.stdout.print(f"{show.format_prediction(row)}  {shown}", markup=False, highlight=False, soft_wrap=True)


def _load_inputs(
    text: list[str] | None,
    pair: list[str] | None,
    path: str | None,
    columns: dict[str, str | None],
    *,
    task_type: "TaskType",
    data_config: Any,
) -> "Examples":
    from dataclasses import replace

    from limbert.data.load import load_texts
    from limbert.data.task_registry import TASK_HANDLERS

    if path is None:
        return TASK_HANDLERS[task_type].make_examples(text or (), pair)
    columns = {name: value for name, value in columns.items() if value}
    return load_texts(
        path, replace(data_config, skip_bad_rows=False, **columns), task_type=task_type
    )  # one answer a row, or none at all


def _input_fields(examples: "Examples", index: int) -> dict[str, Any]:
    row = {"text": examples.texts[index]}
    return row if examples.pairs is None else row | {"pair": examples.pairs[index]}


def _write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows or no file."""
    from limbert.files import atomic_file

    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
