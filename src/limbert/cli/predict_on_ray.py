"""The part of ``limbert predict`` that answers files on a Ray cluster: its options, and what it shows."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.core.config import require
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.inference.batch.request import BatchPredictionConfig
    from limbert.inference.load import LoadedCheckpoint

EngineName = Annotated[
    str, typer.Option("--engine", help="plain (this process) or ray (workers on this machine, or on $RAY_ADDRESS)")
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="with ray: workers (default: one for each --threads cores)", min=1)
]
KeepColumns = Annotated[
    str | None, typer.Option("--keep", help="with ray: input columns to repeat in the output, A,B (default: all)")
]
ShardRows = Annotated[
    int | None, typer.Option("--shard-rows", help="with ray: most rows a file of the output (default: 5000)", min=1)
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="with ray: rows without a text get an empty answer instead of an error")
]
DEFAULT_SHARD_ROWS = 5_000


def check_engine_options(
    engine: str, device: str, workers: int | None, keep: str | None, shard_rows: int | None, skip_bad_rows: bool
) -> None:
    """Refuse an unknown engine, and options that are for the other one.

    Raises:
        ConfigError: naming it.
    """
    require(engine in ("plain", "ray"), "engine", engine, "plain or ray")
    if keep is not None and not keep.strip():
        raise ConfigError(f"--keep is {keep!r}; name columns of the input, or leave it out for all")
    if engine == "ray" and device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device} is for --engine plain; the workers of Ray compute on CPUs")
    given = {"--workers": workers, "--keep": keep, "--shard-rows": shard_rows, "--skip-bad-rows": skip_bad_rows or None}
    for name, value in given.items():
        if engine == "plain" and value is not None:
            raise ConfigError(f"{name} is for --engine ray")


def predict_on_ray(
    run: str,
    opened: "LoadedCheckpoint",
    *,
    request: "BatchPredictionConfig",
    input: str | None,
    output: str | None,
    text_column: str | None,
    pair_column: str | None,
    keep_columns: str | None,
    shard_rows: int | None,
    workers: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Answer the input's rows and say what was done.

    Raises:
        LimbertError: for bad input, or an output that cannot be written.
    """
    from limbert.cli import show
    from limbert.inference.batch.batch import predict_files
    from limbert.inference.batch.cluster import import_ray
    from limbert.inference.batch.shards import shard_input
    from limbert.inference.batch.worker import prediction_columns

    if not input or not output:
        raise ConfigError("--engine ray reads files and writes a folder: give --input and --output")
    import_ray()
    assert opened.task is not None
    named = {"text_column": text_column, "pair_column": pair_column}
    config = replace(opened.data_config, **{name: value for name, value in named.items() if value})  # type: ignore[arg-type]
    with show.titled_progress_bar() as advance, redirect_stdout(sys.stderr):  # what Ray has to say is no result
        found = shard_input(
            input,
            config,
            keep_columns=opt.split_commas(keep_columns),
            added_columns=prediction_columns(opened.task),
            max_shard_rows=shard_rows or DEFAULT_SHARD_ROWS,
            progress=lambda done, total: advance("looking at files", done, total),
        )
        answered = predict_files(
            run,
            opened,
            found,
            output,
            config=request,
            workers=workers,
            threads=threads,
            progress=lambda _, rows, total: advance("answering rows", rows, total),
        )
    if as_json:
        show.print_json(_summary_json(answered) | {"output": output})
        return
    bad = f", {answered.bad_rows} of them without a text" if answered.bad_rows else ""
    before = f"; {answered.resumed} shards were there before" if answered.resumed else ""
    show.stderr.print(
        f"{answered.rows} answers in {answered.shards} shards in {output}{bad}{before}", highlight=False, soft_wrap=True
    )


def _summary_json(result: Any) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ("rows", "shards", "resumed", "bad_rows", "workers", "threads")}
