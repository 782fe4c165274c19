"""``limbert export``: a sub-network as a standalone folder for other programs, verified against its source."""

from typing import TYPE_CHECKING, Annotated

import typer

from limbert.cli import options as opt

if TYPE_CHECKING:
    from limbert.export.export import ExportResult


def export(
    run: Annotated[str, typer.Argument(help="elastic model", metavar="RUN")],
    output: Annotated[str, typer.Option(help="folder to make")],
    subnet: Annotated[str, typer.Option(help="WIDTHxDEPTH, a found or a measured name (3.1ms-91.4)")] = "1x1",
    format: Annotated[str, typer.Option(help="hf (Transformers), onnx or openvino")] = "hf",
    int8: Annotated[bool, typer.Option("--int8", help="quantise to int8, and measure the loss")] = False,
    max_drop: Annotated[float, typer.Option(help="with --int8: largest loss of the metric, in points of 100")] = 1.0,
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
    """Export a sub-network, reload it in its own runtime and verify it against its source; a mismatch leaves no output.

    The outputs are compared on texts of the development set, that of --data or of the training, or on built-in
    sentences. With --int8, metric and latency before and after are measured on the validation split of the training
    data, or on the development set of --data.

    Example: limbert export runs/mrpc --subnet 0.5x0.75 --format onnx --output mrpc-onnx

    Example: limbert export runs/mrpc --subnet 0.5x0.75 --format onnx --int8 --max-drop 0.5 --output mrpc-int8
    """
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.export.export import export_model

    with show.titled_progress_bar() as progress:
        result = export_model(
            run,
            output,
            subnet=subnet,
            format=format,
            int8=int8,
            max_drop=max_drop,
            overwrite=overwrite,
            licence=licence,
            threads=threads,
            progress=progress,
            task=task,
            data=data,
            dev=dev,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
        )
    if as_json:
        show.print_json(result.to_dict() | {"output": output})
    else:
        _print_result(result)


def _print_result(result: "ExportResult") -> None:
    from rich.table import Table

    from limbert.cli import show

    config, parity = result.config, result.parity
    if result.benchmarks:
        table = Table(header_style="bold")
        for name in ("", "fp32", "int8"):
            table.add_column(name, justify="right" if name else "left")
        pair = [result.benchmarks["fp32"], result.benchmarks["int8"]]
        for metric in pair[0].metrics:
            table.add_row(metric, *(f"{100 * one.metrics[metric]:.2f}" for one in pair))
        table.add_row("one text at a time", *(f"{one.latency_ms:.2f} ms" for one in pair))
        table.add_row("batches of 16", *(f"{one.throughput:.0f} texts/s" for one in pair))
        table.add_row("file", *(f"{one.file_bytes / 1e6:.1f} MB" for one in pair))
        show.stdout.print(table)
    show.stdout.print(
        f"Exported {config.subnet} of {config.run} as {config.format}{' in int8' if config.int8 else ''} to "
        f"{config.output}: {show.format_count(result.params)} parameters, {result.file_bytes / 1e6:.1f} MB.\n"
        f"{'Before int8, outputs' if config.int8 else 'Outputs'} match the source on {parity.examples} "
        f"{result.parity_data} (largest difference {parity.max_relative_difference:.1g} of the largest output). "
        f"To load it, see {config.output}/README.md",
        highlight=False,
        soft_wrap=True,
    )
