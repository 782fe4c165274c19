"""``limbert predict --engine ray``: its options, and what it prints."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from limbert.cli import options as opt
from limbert.core.config import require
from limbert.errors import ConfigError, import_optional

if TYPE_CHECKING:
    from limbert.inference.load import LoadedCheckpoint
    from limbert.inference.ray import BatchPredictionConfig

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
    int | None, typer.Option("--shard-rows", help="with ray: most rows in an output file (default: 5000)", min=1)
]
SkipBadRows = Annotated[
    bool,
    typer.Option("--skip-bad-rows", help="with ray: rows without a text get an empty prediction instead of an error"),
]
DEFAULT_SHARD_ROWS = 5_000


def check_engine_options(
    engine: str, device: str, workers: int | None, keep: str | None, shard_rows: int | None, skip_bad_rows: bool
) -> None:
    """Refuse an unknown engine, and options of the other engine.

    Raises:
        ConfigError: naming the option.
    """
    require(engine in ("plain", "ray"), "engine", engine, "plain or ray")
    if keep is not None and not keep.strip(" ,"):
        raise ConfigError(f"--keep is {keep!r}; name columns of the input, or leave it out to keep all")
    if engine == "ray" and device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device} is for --engine plain; Ray workers run on CPUs")
    given = {"--workers": workers, "--keep": keep, "--shard-rows": shard_rows, "--skip-bad-rows": skip_bad_rows or None}
    for name, value in given.items():
        if engine == "plain" and value is not None:
            raise ConfigError(f"{name} is for --engine ray")


def predict_on_ray(
    run: str,
    opened: "LoadedCheckpoint",
    *,
    config: "BatchPredictionConfig",
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
    """Predict the rows of the input files and print a summary.

    Raises:
        LimbertError: for bad input, or an output that cannot be written.
    """
    from limbert.cli import show
    from limbert.inference.ray import predict_files, prediction_columns
    from limbert.inference.shards import shard_input

    if not input or not output:
        raise ConfigError("--engine ray reads files and writes a folder: provide --input and --output")
    import_optional("ray", extra="scale")
    assert opened.task is not None
    data_config = replace(
        opened.data_config,
        text_column=text_column or opened.data_config.text_column,
        pair_column=pair_column or opened.data_config.pair_column,
    )
    with show.titled_progress_bar() as advance, redirect_stdout(sys.stderr):  # Ray prints; stdout is for results
        inputs = shard_input(
            input,
            data_config,
            keep_columns=opt.split_commas(keep_columns),
            prediction_columns=prediction_columns(opened.task),
            max_shard_rows=shard_rows or DEFAULT_SHARD_ROWS,
            progress=lambda done, total: advance("reading files", done, total),
        )
        result = predict_files(
            run,
            opened,
            inputs,
            output,
            config=config,
            workers=workers,
            threads=threads,
            progress=lambda done, total: advance("predicting rows", done, total),
        )
    if as_json:
        names = ("rows", "shards", "resumed", "bad_rows", "workers", "threads")
        show.print_json({name: getattr(result, name) for name in names} | {"output": output})
        return
    bad = f", {result.bad_rows} of them empty (no text)" if result.bad_rows else ""
    resumed = f" ({result.resumed} from an earlier run)" if result.resumed else ""
    show.stderr.print(
        f"{result.rows} predictions in {result.shards} shards{resumed} in {output}{bad}",
        highlight=False,
        soft_wrap=True,
    )
