"""``limbert export``: a sub-network as a folder that other programs run, checked against its source."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.evaluate import override_data_config

if TYPE_CHECKING:
    from limbert.export.export import ExportResult


def export(
    run: Annotated[str, typer.Argument(help="elastic model", metavar="RUN")],
    output: Annotated[str, typer.Option(help="folder to make")],
    subnet: Annotated[str, typer.Option(help="WIDTHxDEPTH, a found one, or as measured: 3.1ms-91.4")] = "1x1",
    format: Annotated[str, typer.Option(help="hf (Transformers), onnx or openvino")] = "hf",
    int8: Annotated[bool, typer.Option("--int8", help="quantise to int8, and measure what it costs")] = False,
    max_drop: Annotated[float, typer.Option(help="with --int8: most that the metric may fall, in points of 100")] = 1.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export in the folder")] = False,
    licence: Annotated[str | None, typer.Option(help="for the model card (default: that of RUN's own card)")] = None,
    task: opt.TaskName = None,
    data: opt.Data = None,
    dev: opt.DevFile = None,
    text_column: opt.TextColumn = None,
    pair_column: opt.PairColumn = None,
    label_column: opt.LabelColumn = None,
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Export a sub-network, reload it in its own runtime and compare it with the source; a mismatch leaves no output.

    The comparison runs on texts of the development set: that of --data or of the training, else on built-in sentences.
    With --int8, metric and speed before and after are measured on the validation slice of the training rows, or on
    the development set of --data.

    Example: limbert export runs/mrpc --subnet 0.5x0.75 --format onnx --output mrpc-onnx

    Example: limbert export runs/mrpc --subnet 0.5x0.75 --format onnx --int8 --max-drop 0.5 --output mrpc-int8
    """
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.evaluation.choose import resolve_measured_names
    from limbert.export.export import ExportConfig
    from limbert.export.export import export_model as run_export
    from limbert.inference.load import load_checkpoint

    named = {
        "task": task,
        "data": data,
        "dev": dev,
        "text_column": text_column,
        "pair_column": pair_column,
        "label_column": label_column,
    }
    settings = {"int8": int8, "max_drop": max_drop, "overwrite": overwrite, "threads": threads, "licence": licence}
    (subnet,) = resolve_measured_names(run, [subnet])
    request = ExportConfig(run, subnet, format, Path(output), **settings)  # type: ignore[arg-type]
    opened = load_checkpoint(run, head="as-saved")
    show.warn_if_untrained(opened.model, subnet)
    request = request.with_data(override_data_config(opened.data_config, **named), given=bool(data or dev))
    with show.progress_bar("exporting") as advance:
        exported = run_export(opened, request, progress=advance)
    if as_json:
        show.print_json(exported.to_dict() | {"output": output})
    else:
        _print_result(exported)


def _print_result(exported: "ExportResult") -> None:
    from rich.table import Table

    from limbert.cli import show

    request, compared = exported.config, exported.parity
    if exported.benchmarks:
        table = Table(header_style="bold")
        for name in ("", "fp32", "int8"):
            table.add_column(name, justify="right" if name else "left")
        pair = [exported.benchmarks["fp32"], exported.benchmarks["int8"]]
        for metric in pair[0].metrics:
            table.add_row(metric, *(f"{100 * one.metrics[metric]:.2f}" for one in pair))
        table.add_row("one text at a time", *(f"{one.latency_ms:.2f} ms" for one in pair))
        table.add_row("batches of 16", *(f"{one.throughput:.0f} texts/s" for one in pair))
        table.add_row("file", *(f"{one.file_bytes / 1e6:.1f} MB" for one in pair))
        show.stdout.print(table)
    show.stdout.print(
        f"{request.subnet} of {request.run} as {request.format}{' in int8' if request.int8 else ''} "
        f"in {request.output}: {show.format_count(exported.params)} parameters, {exported.file_bytes / 1e6:.1f} MB\n"
        f"{'Before int8 equal' if request.int8 else 'Equal'} to its source on {compared.examples} "
        f"{exported.parity_data} (largest difference {compared.max_relative_difference:.1g} of the largest output); how to load it: "
        f"{request.output}/README.md",
        highlight=False,
        soft_wrap=True,
    )
