"""``limbert report``: write the HTML report of a run."""

from pathlib import Path
from typing import Annotated

import typer

from limbert.cli import options as opt
from limbert.errors import ConfigError

REPORT_NAME = "report.html"


def report(
    run: Annotated[str, typer.Argument(help="run directory of limbert train", metavar="RUN")],
    output: Annotated[
        str | None,
        typer.Option(help="page to write; pictures go beside it (default: RUN/report.html)", metavar="FILE.html"),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Write a self-contained HTML page about a run, and its pictures as PNG files.

    Shows which sub-network fits a budget and what it loses, the metric against latency, FLOPs and size, a heat map of
    all sub-networks, operating points with their gate widths and exits, training curves, hardware and commands. Reads
    files in RUN and runs no model; where something was not measured, the page names the command that measures it.

    Example: limbert report runs/mrpc

    Example: limbert report runs/mrpc --output mrpc.html
    """
    from limbert.cli import console
    from limbert.report.page import Report
    from limbert.report.read import read_run

    data = read_run(run)
    page = Path(output).expanduser() if output is not None else Path(run).expanduser() / REPORT_NAME
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"output {page} must end in .html")
    if page.is_dir() or not page.absolute().parent.is_dir():
        reason = "it is a folder" if page.is_dir() else "its folder does not exist"
        raise ConfigError(f"output {page} cannot be written: {reason}")
    pictures = Report(data).save(page)
    if as_json:
        console.print_json({"page": str(page), "pictures": [str(path) for path in pictures]})
        return
    console.say(f"Wrote {page} and {len(pictures)} pictures in {pictures[0].parent}")
