"""``limbert predict --engine ray``: its options, and its result in the terminal."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbert.core.config import config_field, require
from limbert.errors import ConfigError, import_optional

if TYPE_CHECKING:
    from limbert.cli.predict_options import PredictOptions
    from limbert.inference.pipeline import Pipeline


@dataclass(frozen=True)
class RayOptions:
    """The engine of ``limbert predict``, and the options that need ``--engine ray``."""

    engine: str | None = config_field(
        None, "plain (this process, the default) or ray (workers on this machine, or on $RAY_ADDRESS)"
    )
    workers: int | None = config_field(None, "workers (default: one for each --threads cores)", minimum=1)
    shard_rows: int | None = config_field(None, "most rows in an output file (default: 5000)", minimum=1)


def check_engine_options(
    engine: str, device: str, ray: dict[str, Any], options: "PredictOptions", long_texts: str
) -> None:
    """Refuse an unknown engine, and options of the other engine, before a model is loaded.

    Raises:
        ConfigError: naming the option.
    """
    require(engine in ("plain", "ray"), "engine", engine, "plain or ray")
    if engine == "ray" and device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device} is for --engine plain; Ray workers run on CPUs")
    if engine == "plain" and ray:
        raise ConfigError(f"--{next(iter(ray)).replace('_', '-')} is for --engine ray")
    if engine == "plain":
        return
    if not options.input or not options.output:
        raise ConfigError("--engine ray reads files and writes a folder: provide --input and --output")
    given = {name: getattr(options, name) for name in ("scores", "top_k", "abstain_below")}
    for name, value in (given | {"long_texts": long_texts}).items():
        if value not in (False, None, "truncate"):
            raise ConfigError(f"--{name.replace('_', '-')} is for --engine plain")


def predict_on_ray(
    pipe: "Pipeline", options: "PredictOptions", ray: dict[str, Any], *, threads: int | None, as_json: bool
) -> None:
    """Predict the rows of the input files and print a summary.

    Raises:
        LimbertError: for bad input, or an output that cannot be written.
    """
    from limbert.cli import console
    from limbert.inference.ray import predict_files

    assert options.input is not None
    assert options.output is not None
    import_optional("ray", extra="scale")
    with console.ProgressBar() as bar, redirect_stdout(sys.stderr):  # Ray prints; stdout is for results
        result = predict_files(
            pipe,
            options.input,
            options.output,
            keep_columns=options.keep,
            skip_bad_rows=options.skip_bad_rows,
            threads=threads,
            progress=bar,
            **ray,
        )
    if as_json:
        names = ("rows", "shards", "resumed", "bad_rows", "workers", "threads")
        console.print_json({name: getattr(result, name) for name in names} | {"output": options.output})
        return
    bad = f", {result.bad_rows} of them empty (no text)" if result.bad_rows else ""
    resumed = f" ({result.resumed} from an earlier run)" if result.resumed else ""
    console.note(f"Saved {result.rows} predictions in {result.shards} shards{resumed} in {options.output}{bad}")
