"""Exporting one sub-network: write, reload in its own runtime, compare, and only then take the place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from limbert.core.config import DataConfig
from limbert.core.subnet import Shape, Subnet
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, ExportError, import_optional
from limbert.evaluation.hardware import describe_this_machine
from limbert.evaluation.subnets import count_parameters
from limbert.export.formats import EXPORTERS
from limbert.export.huggingface import auto_class_of, is_stock
from limbert.export.model_card import ExportCard, base_model, dev_metrics, licence, profile_rows
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
from limbert.inference.load import LoadedCheckpoint
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.model.checkpoint import library_versions, write_json

EXPORT_RECORD_NAME = "export.json"  # what says that a folder is an export


@dataclass(frozen=True)
class ExportConfig:
    """What is to be exported, and how.

    Attributes:
        run: folder or name of the elastic model.
        subnet: name of the sub-network.
        format: one of `EXPORTERS`.
        output: the folder to make.
        int8: whether to quantise.
        max_drop: with int8: how much of the primary metric may be lost, in points of 100.
        overwrite: whether an earlier export in ``output`` may be replaced.
        threads: of the runtime; None is its own default.
        licence: for the card; None takes the licence of the run's own card.
        data: where examples are.
        data_named: whether somebody named the data now; else it is where the training had it.

    Raises:
        ConfigError: for a format that is unknown or has no int8, a drop out of range, or an output that is taken.
    """

    run: str
    subnet: str
    format: str
    output: Path
    int8: bool = False
    max_drop: float = 1.0
    overwrite: bool = False
    threads: int | None = None
    licence: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    data_given: bool = False

    def __post_init__(self) -> None:
        if self.format not in EXPORTERS:
            raise ConfigError(f"unknown format {self.format!r}; allowed: {', '.join(EXPORTERS)}")
        if self.int8 and EXPORTERS[self.format].quantize is None:
            others = ", ".join(name for name, exporter in EXPORTERS.items() if exporter.quantize is not None)
            raise ConfigError(f"format {self.format!r} has no int8; formats that have: {others}")
        if not 0 <= self.max_drop <= 100:
            raise ConfigError(f"max drop is {self.max_drop:g}; it must be between 0 and 100 points")
        _check_output(self.output, overwrite=self.overwrite)

    def with_data(self, data: DataConfig, *, given: bool) -> Self:
        """The same with the data to use."""
        return replace(self, data=data, data_given=given)


def _check_output(output: Path, *, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / EXPORT_RECORD_NAME).is_file():
        raise ConfigError(f"output {output} exists and is not an export of Limbert; choose another folder")
    if not overwrite:
        raise ConfigError(f"output {output} holds an export already; choose another folder or --overwrite")


ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportResult:
    """What came of it.

    Attributes:
        request: what was asked for.
        params: parameters of the sub-network.
        file_bytes: of the file with the weights.
        metrics: on the development set, as the training measured them; empty if unknown.
        comparison: of the file with the source; with int8, of the file before.
        compared_on: what the examples were.
        quality: with int8: ``fp32`` and ``int8``.
    """

    config: ExportConfig
    params: int
    file_bytes: int
    dev_metrics: Mapping[str, float]
    parity: ParityResult
    parity_data: str
    benchmarks: Mapping[str, RuntimeBenchmark]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        request = self.config
        return {
            "subnet": request.subnet,
            "format": request.format,
            "int8": request.int8,
            "source": Path(request.run).name,
            "params": self.params,
            "file_bytes": self.file_bytes,
            "metrics": dict(self.dev_metrics),
            "compared": {
                "examples": self.parity.examples,
                "on": self.parity_data,
                "difference": self.parity.max_relative_difference,
                "agreement": self.parity.agreement,
            },
            "quality": {name: quality.to_dict() for name, quality in self.benchmarks.items()},
        }


def export_model(
    opened: LoadedCheckpoint, config: ExportConfig, *, progress: ProgressCallback = lambda done, total: None
) -> ExportResult:
    """Export one sub-network of an opened model to a folder, whole or not at all.

    Raises:
        SubnetError: for a sub-network that the model cannot run.
        ConfigError: if a library is missing.
        DataError: if named data cannot be read, or int8 has no labelled examples to be judged by.
        ExportError: if the file does not answer as its source, or int8 loses too much.
        StorageError: if the folder cannot be written.
    """
    exporter = EXPORTERS[config.format]
    for library in exporter.libraries:
        import_optional(library, extra="export")
    subnet = opened.model.subnet(config.subnet)
    network = opened.model.extract(subnet).eval()
    trial = parity_examples(opened, config.data, required=config.data_given)
    labelled = None
    if config.int8:  # before the work, because it may refuse
        labelled = labelled_examples(opened, config.data, use_dev_set=config.data_given)
    multiple = type(network).__name__.endswith("ForMultipleChoice")
    batches = list(parity_batches(trial.examples, multiple_choice=multiple))
    with atomic_folder(config.output) as folder:
        inputs = tuple(name for name in batches[0] if name in opened.tokenizer.model_input_names)
        exporter.write(network, folder, inputs)
        opened.tokenizer.save_pretrained(folder)
        source = load_runtime("torch", network, threads=config.threads)
        comparison = compare_outputs(source, exporter.load(folder, config.threads), batches)
        require_parity(comparison)
        exported = ExportResult(
            config=config,
            params=count_parameters(opened.model, subnet),
            dev_metrics=dev_metrics(config.run, opened.model.record, config.subnet),
            parity=comparison,
            parity_data=trial.description,
            benchmarks={} if labelled is None else _quantize(opened, config, folder, labelled, progress),
            file_bytes=(folder / exporter.weights_name).stat().st_size,
        )
        write_json(folder / EXPORT_RECORD_NAME, exported.to_dict() | {"versions": library_versions()})
        card = _export_card(opened, exported, subnet, network=network, takes_pairs=trial.takes_pairs)
        (folder / "README.md").write_text(card.to_markdown(), encoding="utf-8")
    return exported


def _quantize(
    opened: LoadedCheckpoint,
    config: ExportConfig,
    folder: Path,
    examples: TokenizedExamples,
    progress: ProgressCallback,
) -> dict[str, RuntimeBenchmark]:
    """Turn the files into int8 and measure them against what they were.

    Raises:
        ExportError: if the primary metric falls by more than allowed.
    """
    exporter = EXPORTERS[config.format]
    assert exporter.quantize is not None
    assert opened.task is not None

    def loaded() -> tuple[Runtime, int]:
        return exporter.load(folder, config.threads), (folder / exporter.weights_name).stat().st_size

    before = loaded()
    exporter.quantize(folder, lambda: calibration_batches(opened, config.data))
    quality = benchmark_runtimes({"fp32": before, "int8": loaded()}, examples, task=opened.task, progress=progress)
    metric = opened.task.primary_metric
    values = [quality[name].metrics[metric] for name in ("fp32", "int8")]
    drop = 100 * (values[0] - values[1])
    if drop > config.max_drop:
        raise ExportError(
            f"int8 costs {drop:.2f} points of {metric} ({100 * values[0]:.2f} to {100 * values[1]:.2f} on "
            f"{len(examples)} examples); allowed: {config.max_drop:g} (--max-drop); nothing was written"
        )
    return quality


def _export_card(
    opened: LoadedCheckpoint, result: ExportResult, subnet: Subnet, *, network: PreTrainedModel, takes_pairs: bool
) -> ExportCard:
    request = result.config
    return ExportCard(
        name=request.output.absolute().name,
        format=request.format,
        runtime_title=EXPORTERS[request.format].runtime_title,
        network=type(network).__name__,
        auto_class=auto_class_of(network),
        needs_remote_code=request.format == "hf" and not is_stock(network),
        source=Path(request.run).name,
        base_model=base_model(opened.model.record),
        licence=request.licence or licence(request.run),
        task=opened.task,
        takes_pairs=takes_pairs,
        subnet=(request.subnet, _describe_subnet(subnet, opened.model.shape)),
        params=result.params,
        dev_metrics=result.dev_metrics,
        profile=profile_rows(request.run, request.subnet),
        parity=result.parity,
        parity_data=result.parity_data,
        benchmarks=result.benchmarks,
        hardware=describe_this_machine(request.threads),
    )


def _describe_subnet(subnet: Subnet, shape: Shape) -> str:
    """``4 of 6 layers (0, 1, 2, 3), 6 of 12 heads and 768 of 1536 neurons in each``."""
    layers = f"{len(subnet.layers)} of {shape.layers} layers ({', '.join(map(str, subnet.layers))})"

    def each(counts: tuple[int, ...], full: int, what: str) -> str:
        if len({*counts}) == 1:
            return f"{counts[0]} of {full} {what}"
        return f"{', '.join(map(str, counts))} of {full} {what}"

    heads, neurons = each(subnet.heads, shape.heads, "heads"), each(subnet.neurons, shape.neurons, "neurons")
    return f"{layers}, {heads} and {neurons} in each"
