"""Export of one sub-network: write, reload in its own runtime, verify, and only then publish the folder."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from limbert.core.config import DataConfig, require
from limbert.core.subnet import Shape, Subnet
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, ExportError, import_optional
from limbert.evaluation.choose import resolve_measured_names
from limbert.evaluation.evaluate import Progress, count_parameters, no_progress
from limbert.evaluation.hardware import describe_this_machine
from limbert.export.formats import EXPORTERS
from limbert.export.huggingface import auto_class_of, is_stock
from limbert.export.model_card import ExportCard, base_model, dev_metrics, licence_of, profile_rows
from limbert.export.verify import (
    ParityResult,
    RuntimeBenchmark,
    benchmark_runtimes,
    calibration_batches,
    compare_outputs,
    labelled_examples,
    parity_batches,
    parity_examples,
    require_parity,
)
from limbert.files import atomic_folder
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, override_data_config, warn_if_untrained
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.model.checkpoint import library_versions, write_json

EXPORT_RECORD_NAME = "export.json"  # marks a folder as an export


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an export, see `export_model`.

    Raises:
        ConfigError: for a format that is unknown or has no int8, a drop out of range, or an output that exists.
    """

    run: str
    output: Path
    subnet: str
    format: str
    int8: bool
    max_drop: float
    overwrite: bool
    licence: str | None
    threads: int | None

    def __post_init__(self) -> None:
        require(self.format in EXPORTERS, "format", self.format, f"one of {', '.join(EXPORTERS)}")
        if self.int8 and EXPORTERS[self.format].quantize is None:
            others = ", ".join(name for name, exporter in EXPORTERS.items() if exporter.quantize is not None)
            raise ConfigError(f"format {self.format!r} has no int8; formats that have: {others}")
        require(0 <= self.max_drop <= 100, "max drop", self.max_drop, "between 0 and 100 points")
        if not self.output.exists() or (self.output.is_dir() and not any(self.output.iterdir())):
            return
        if not (self.output / EXPORT_RECORD_NAME).is_file():
            raise ConfigError(f"output {self.output} exists and is not an export of Limbert; choose another folder")
        if not self.overwrite:
            raise ConfigError(f"output {self.output} holds an export already; choose another folder or --overwrite")


@dataclass(frozen=True)
class ExportResult:
    """The outcome of an export.

    Attributes:
        config: its settings.
        params: parameters of the sub-network.
        file_bytes: of the file with the weights.
        dev_metrics: on the development set, from the training's results; empty if unknown.
        parity: the outputs compared with the source's; with int8, those before quantisation.
        parity_data: what the compared examples were.
        benchmarks: with int8: ``fp32`` and ``int8``.
    """

    config: ExportConfig
    params: int
    file_bytes: int
    dev_metrics: Mapping[str, float]
    parity: ParityResult
    parity_data: str
    benchmarks: Mapping[str, RuntimeBenchmark]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "subnet": self.config.subnet,
            "format": self.config.format,
            "int8": self.config.int8,
            "source": Path(self.config.run).name,
            "params": self.params,
            "file_bytes": self.file_bytes,
            "metrics": dict(self.dev_metrics),
            "compared": {
                "examples": self.parity.examples,
                "on": self.parity_data,
                "difference": self.parity.max_relative_difference,
                "agreement": self.parity.agreement,
            },
            "quality": {name: benchmark.to_dict() for name, benchmark in self.benchmarks.items()},
        }


def export_model(
    run: str | Path,
    output: str | Path,
    *,
    subnet: str = "1x1",
    format: str = "hf",
    int8: bool = False,
    max_drop: float = 1.0,
    overwrite: bool = False,
    licence: str | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    **data: Any,
) -> ExportResult:
    """Export one sub-network as a standalone folder, verified against its source, whole or not at all.

    Args:
        run: folder or Hub id of the elastic model.
        output: the folder to make.
        subnet: ``WIDTHxDEPTH``, a name found by a search, or a measured name.
        format: ``hf`` (Transformers), ``onnx`` or ``openvino``.
        int8: whether to quantise; needs labelled examples to measure the loss.
        max_drop: with int8: largest loss of the primary metric, in points of 100.
        overwrite: whether to replace an earlier export in ``output``.
        licence: for the model card; default: that of the run's own card.
        threads: of the runtime; None: its default.
        progress: called with what runs, steps done and steps in all.
        data: settings of `DataConfig` (``data=``, ``dev=`` ...) instead of the training's.

    Raises:
        SubnetError: for a sub-network that the model cannot run.
        ConfigError: for a setting out of range, an output that exists, or a missing library.
        ExportError: if the outputs differ from the source's, or int8 loses too much.
    """
    run = os.path.expanduser(run)
    (subnet_name,) = resolve_measured_names(run, [subnet])
    config = ExportConfig(
        run, Path(output).expanduser(), subnet_name, format, int8, max_drop, overwrite, licence, threads
    )
    exporter = EXPORTERS[config.format]
    for library in exporter.libraries:
        import_optional(library, extra="export")
    checkpoint = load_checkpoint(run, head="as-saved")
    selected = checkpoint.model.subnet(config.subnet)
    warn_if_untrained(checkpoint.model, config.subnet)
    network = checkpoint.model.extract(selected).eval()
    data_config = override_data_config(checkpoint.data_config, **data)
    data_given = bool(data.get("data") or data.get("dev"))
    trial = parity_examples(checkpoint, data_config, required=data_given)
    labelled = None
    if int8:  # before the work, because it may refuse
        labelled = labelled_examples(checkpoint, data_config, use_dev_set=data_given)
    multiple_choice = type(network).__name__.endswith("ForMultipleChoice")
    batches = list(parity_batches(trial.examples, multiple_choice=multiple_choice))
    checkpoint.tokenizer.model_max_length = checkpoint.max_length  # the length the model was trained with
    with atomic_folder(config.output) as folder:
        inputs = tuple(name for name in batches[0] if name in checkpoint.tokenizer.model_input_names)
        exporter.write(network, folder, inputs)
        checkpoint.tokenizer.save_pretrained(folder)
        source = load_runtime("torch", network, threads=threads)
        parity = compare_outputs(source, exporter.load(folder, threads), batches)
        require_parity(parity)
        benchmarks: Mapping[str, RuntimeBenchmark] = {}
        if labelled is not None:
            benchmarks = _quantize(
                checkpoint, config, folder, labelled, data_config, progress=partial(progress, "measuring int8")
            )
        result = ExportResult(
            config=config,
            params=count_parameters(checkpoint.model, selected),
            file_bytes=(folder / exporter.weights_name).stat().st_size,
            dev_metrics=dev_metrics(run, checkpoint.model.record, config.subnet),
            parity=parity,
            parity_data=trial.description,
            benchmarks=benchmarks,
        )
        write_json(folder / EXPORT_RECORD_NAME, result.to_dict() | {"versions": library_versions()})
        card = _export_card(checkpoint, result, selected, network=network, takes_pairs=trial.takes_pairs)
        (folder / "README.md").write_text(card.to_markdown(), encoding="utf-8")
    return result


def _quantize(
    checkpoint: LoadedCheckpoint,
    config: ExportConfig,
    folder: Path,
    examples: TokenizedExamples,
    data_config: DataConfig,
    *,
    progress: Callable[[int, int], None],
) -> dict[str, RuntimeBenchmark]:
    """Quantise the files to int8 and benchmark them before and after."""
    exporter, task = EXPORTERS[config.format], checkpoint.trained_task
    assert exporter.quantize is not None

    def load() -> tuple[Runtime, int]:
        return exporter.load(folder, config.threads), (folder / exporter.weights_name).stat().st_size

    before = load()
    exporter.quantize(folder, lambda: calibration_batches(checkpoint, data_config))
    benchmarks = benchmark_runtimes({"fp32": before, "int8": load()}, examples, task=task, progress=progress)
    metric = task.primary_metric
    fp32, int8 = (100 * benchmarks[name].metrics[metric] for name in ("fp32", "int8"))
    if fp32 - int8 > config.max_drop:
        raise ExportError(
            f"int8 costs {fp32 - int8:.2f} points of {metric} ({fp32:.2f} to {int8:.2f} on {len(examples)} examples); "
            f"allowed: {config.max_drop:g} (--max-drop); nothing was written"
        )
    return benchmarks


def _export_card(
    checkpoint: LoadedCheckpoint, result: ExportResult, subnet: Subnet, *, network: PreTrainedModel, takes_pairs: bool
) -> ExportCard:
    config = result.config
    return ExportCard(
        name=config.output.absolute().name,
        format=config.format,
        runtime_title=EXPORTERS[config.format].runtime_title,
        network=type(network).__name__,
        auto_class=auto_class_of(network),
        needs_remote_code=config.format == "hf" and not is_stock(network),
        source=Path(config.run).name,
        base_model=base_model(checkpoint.model.record),
        licence=config.licence or licence_of(config.run),
        task=checkpoint.task,
        takes_pairs=takes_pairs,
        subnet=(config.subnet, _describe_subnet(subnet, checkpoint.model.shape)),
        params=result.params,
        dev_metrics=result.dev_metrics,
        profile=profile_rows(config.run, config.subnet),
        parity=result.parity,
        parity_data=result.parity_data,
        benchmarks=result.benchmarks,
        hardware=describe_this_machine(config.threads),
    )


def _describe_subnet(subnet: Subnet, shape: Shape) -> str:
    """``4 of 6 layers (0, 1, 2, 3), 6 of 12 heads and 768 of 1536 neurons in each``."""
    layers = f"{len(subnet.layers)} of {shape.layers} layers ({', '.join(map(str, subnet.layers))})"

    def describe(counts: tuple[int, ...], full: int, unit: str) -> str:
        shown = counts[:1] if len({*counts}) == 1 else counts
        return f"{', '.join(map(str, shown))} of {full} {unit}"

    heads, neurons = describe(subnet.heads, shape.heads, "heads"), describe(subnet.neurons, shape.neurons, "neurons")
    return f"{layers}, {heads} and {neurons} in each"
