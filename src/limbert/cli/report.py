"""``limbert report``: what a run reached, cost and did, as one HTML page with its pictures."""

from pathlib import Path
from typing import Annotated

import typer

from limbert.cli import options as opt
from limbert.errors import CheckpointError, ConfigError

REPORT_NAME = "report.html"


def report(
    run: Annotated[str, typer.Argument(help="folder of a trained model", metavar="RUN")],
    output: Annotated[
        str | None,
        typer.Option(
            help="the page, FILE.html; its pictures go beside it (default: RUN/report.html)", metavar="FILE.html"
        ),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Make one self-contained HTML page of a run, and its pictures as PNG files.

    Metric against latency, FLOPs and size, the heat map of all sub-networks, training curves, operating points with the
    widths that gates choose and the layers that inputs leave at, hardware and commands. It reads the files that the
    other verbs wrote into RUN and runs no model; what was not measured is left out and the page says which command
    measures it.

    Example: limbert report runs/mrpc

    Example: limbert report runs/mrpc --output mrpc.html
    """
    if not Path(run).is_dir():
        raise CheckpointError(f"no model folder at {run}")
    page = Path(output) if output is not None else Path(run) / REPORT_NAME
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"output {page} must end in .html")
    if page.is_dir() or not page.absolute().parent.is_dir():
        raise ConfigError(
            f"output {page} cannot be written: {'it is a folder' if page.is_dir() else 'its folder is not there'}"
        )
    from limbert.report.page import make_report, require_libraries, save_report
    from limbert.report.read import read_run

    require_libraries()
    opt.prepare_libraries(None)
    from limbert.cli import console

    made = make_report(read_run(run))
    pictures = save_report(made, page)
    if as_json:
        console.print_json({"page": str(page), "pictures": [str(path) for path in pictures]})
        return
    console.say(f"report in {page}; {len(pictures)} pictures in {pictures[0].parent}")
