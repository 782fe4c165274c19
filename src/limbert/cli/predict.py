"""``limbert predict``: answers for texts, by a sub-network or a dynamic policy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli import predict_on_ray as on_ray
from limbert.cli.policies import ExitRuleOption, ExitThreshold, PolicyName, Widths, choose_policy
from limbert.cli.predict_server import ServerQuestion, check_place
from limbert.data.readers import half_character
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.core.config import TaskKind
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
    keep: on_ray.Keep = None,
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
    check_place(context)
    on_ray.check_engine(engine, device, workers, keep, shard_rows, skip_bad_rows)
    if policy is not None and subnet:
        raise ConfigError("give either --subnet or --policy; one size is --policy static:WIDTHxDEPTH")
    if bool(text) == bool(input):
        raise ConfigError("give either --text or --input")
    if pair and len(pair) != len(text or []):
        raise ConfigError(f"{len(pair)} --pair for {len(text or [])} --text; each text needs one")
    for part in [*(text or ()), *(pair or ())]:
        if half_character({"text": part}) is not None:
            raise ConfigError(f"text {part!r} is not UTF-8")
    if engine == "plain" and output and input and Path(output).resolve() == Path(input).resolve():
        raise ConfigError(f"output {output} is the input; choose another file")
    if engine == "plain" and output and not Path(output).absolute().parent.is_dir():
        raise ConfigError(f"the folder of output {output} does not exist")
    if engine == "plain" and output and Path(output).is_dir():
        raise ConfigError(f"output {output} is a folder; write the name of a file")
    if run is None:
        asked = ServerQuestion(str(server), api_key, subnet, policy)
        examples = asked.examples(text, pair, input, text_column=text_column, pair_column=pair_column)
        _show([_row(examples, index) | answer for index, answer in enumerate(asked.answers(examples))], output, as_json)
        return
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.core.config import require
    from limbert.data.tokenize import evaluation_batches
    from limbert.errors import CheckpointError
    from limbert.evaluation.choose import plain_names
    from limbert.inference.batch.request import Request
    from limbert.inference.load import open_checkpoint
    from limbert.inference.policy import resolve
    from limbert.inference.predict import predict as run_prediction

    require(precision in ("fp32", "bf16"), "precision", precision, "fp32 or bf16")
    opened = open_checkpoint(run, device="cpu" if engine == "ray" else device)
    if opened.task is None:
        what = "is an encoder without a task" if opened.model.record else "has no limbert.json"
        raise CheckpointError(f"{run} {what}; train it with limbert train first")
    chosen = choose_policy(
        policy or f"static:{plain_names(run, [subnet or '1x1'])[0]}",
        record=opened.model.record,
        kind=opened.task.kind,
        widths=widths,
        exit_threshold=exit_threshold,
        exit_rule=exit_rule,
    )
    resolve(chosen, opened.model, kind=opened.task.kind)  # refuses early what the model cannot do
    if chosen.subnet is not None:
        show.untrained(opened.model, chosen.subnet)
    if engine == "ray":
        on_ray.predict_on_ray(
            run,
            opened,
            input=input,
            output=output,
            text_column=text_column,
            pair_column=pair_column,
            keep=keep,
            shard_rows=shard_rows,
            workers=workers,
            threads=threads,
            as_json=as_json,
            request=Request(chosen, precision, batch_size, skip_bad_rows),  # type: ignore[arg-type]
        )
        return
    named = {"text_column": text_column, "pair_column": pair_column}
    examples = _examples(text, pair, input, named, kind=opened.task.kind, saved=opened.data)
    tokens = opened.prepared(examples, cache=input is not None)
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
        _row(examples, index) | answer.to_dict() | (answer.spent() if dynamic else {})
        for index, answer in enumerate(answers)
    ]
    _show(rows, output, as_json)


def _show(rows: list[dict[str, Any]], output: str | None, as_json: bool) -> None:
    from limbert.cli import show

    if output:
        _write(Path(output), rows)
        show.messages.print(f"{len(rows)} answers in {output}", highlight=False, soft_wrap=True)
    elif as_json:
        show.print_json(rows)
    else:
        for row in rows:
            shown = " | ".join(part for part in (row["text"], row.get("pair")) if part)
            show.output.print(f"{show.answer(row)}  {shown}", markup=False, highlight=False, soft_wrap=True)


def _examples(
    text: list[str] | None,
    pair: list[str] | None,
    path: str | None,
    named: dict[str, str | None],
    *,
    kind: "TaskKind",
    saved: Any,
) -> "Examples":
    from dataclasses import replace

    from limbert.data.load import load_texts
    from limbert.data.task_registry import KINDS

    if path is None:
        return KINDS[kind].typed(text or (), pair)
    named = {name: value for name, value in named.items() if value}
    return load_texts(path, replace(saved, skip_bad_rows=False, **named), kind=kind)  # one answer a row, or none at all


def _row(examples: "Examples", index: int) -> dict[str, Any]:
    row = {"text": examples.texts[index]}
    return row if examples.pairs is None else row | {"pair": examples.pairs[index]}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows or no file."""
    from limbert.files import replaced_file

    with replaced_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
