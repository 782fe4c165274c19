"""``limbert export``: a sub-network or policy as a standalone folder for other programs, verified in its runtime."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import config_field
from limbert.core.verb_config import ExportOptions

if TYPE_CHECKING:
    from limbert.export.export_result import ExportResult


@dataclass(frozen=True)
class _Target:
    output: str = config_field("", "folder to make", required=True)
    subnet: str | None = config_field(None, "WIDTHxDEPTH, or a searched name (default: 1x1)")


@config_options(
    target=ConfigOptions(_Target),
    options=ConfigOptions(ExportOptions),
    policy=opt.POLICY,
    data=opt.data_options("task", "data", "dev", "text_column", "pair_column", "label_column"),
)
def export(
    run: opt.Run,
    target: _Target,
    options: ExportOptions,
    policy: dict[str, Any],
    data: dict[str, Any],
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Export a sub-network or policy and verify it, reloaded in its own runtime; a mismatch leaves no output.

    The outputs are compared on texts of the development set, that of --data or of the training, or on built-in
    sentences. With --int8, metric and latency before and after are measured on the validation split of the training
    data, or on the development set of --data.

    \b
    Example: limbert export runs/mrpc --subnet 0.5x0.75 --format onnx --output mrpc-onnx
    Example: limbert export runs/mrpc --subnet 0.25x0.5 --vocabulary glue/MRPC --output mrpc-small
    Example: limbert export runs/mrpc --subnet 0.5x0.75 --format onnx --int8 --max-drop 0.5 --output mrpc-int8
    Example: limbert export runs/mrpc --policy balanced --format openvino --output mrpc-balanced
    """
    opt.check_policy_options(policy, target.subnet)
    opt.prepare_libraries(threads)
    from limbert.cli import console
    from limbert.export.export import export_model

    settings: dict[str, Any] = vars(target) | vars(options) | policy | data
    with console.ProgressBar() as progress:
        result = export_model(run, threads=threads, progress=progress, **settings)
    if as_json:
        console.print_json(result.to_dict() | {"output": target.output})
    else:
        _print_result(result)


def _print_result(result: "ExportResult") -> None:
    from limbert.cli.console import print_table, say
    from limbert.core.units import format_quantity

    config, parity = result.config, result.parity
    if result.benchmarks:
        pair = [result.benchmarks["fp32"], result.benchmarks["int8"]]
        rows = [[name, *(f"{100 * runtime.metrics[name]:.2f}" for runtime in pair)] for name in pair[0].metrics]
        rows.append(["one text at a time", *(f"{runtime.latency_ms:.2f} ms" for runtime in pair)])
        rows.append(["batches of 16", *(f"{runtime.throughput:.0f} texts/s" for runtime in pair)])
        rows.append(["file", *(f"{runtime.file_bytes / 1e6:.1f} MB" for runtime in pair)])
        print_table(["", "fp32", "int8"], rows)
    if result.vocabulary is not None:
        say(str(result.vocabulary))
    params = "" if result.params is None else f"{format_quantity(result.params, quantity_type='count')} parameters, "
    say(
        f"Exported {result.title} of {config.run} as {config.format}{' in int8' if config.int8 else ''} to "
        f"{config.output}: {params}{result.file_bytes / 1e6:.1f} MB.\n"
        f"{'Before int8, outputs' if config.int8 else 'Outputs'} match the source on {parity.examples} "
        f"{result.parity_data} (largest difference {parity.max_relative_difference:.1g} of the largest output). "
        f"To load it, see {config.output}/README.md"
    )
