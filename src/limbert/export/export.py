"""Exporting one sub-network: write, reload in its own runtime, compare, and only then take the place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from limbert.core.config import DataConfig
from limbert.core.subnet import Shape, Subnet
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, ExportError
from limbert.evaluation.hardware import here
from limbert.evaluation.subnets import count_parameters
from limbert.export.formats import EXPORTERS
from limbert.export.huggingface import auto_class_of, is_stock
from limbert.export.model_card import Card, base_model, licence, measured_metrics, profile_rows
from limbert.export.verify import (
    Comparison,
    Quality,
    calibration_batches,
    compare,
    labelled_examples,
    measure,
    require_equal,
    trial_batches,
    trial_examples,
)
from limbert.files import replaced_folder
from limbert.inference.load import Opened
from limbert.inference.onnx_graph import optional_library
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.model.checkpoint import versions, write_json

RECORD_NAME = "export.json"  # what says that a folder is an export


@dataclass(frozen=True)
class Request:
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
    data_named: bool = False

    def __post_init__(self) -> None:
        if self.format not in EXPORTERS:
            raise ConfigError(f"unknown format {self.format!r}; allowed: {', '.join(EXPORTERS)}")
        if self.int8 and EXPORTERS[self.format].quantize is None:
            others = ", ".join(name for name, exporter in EXPORTERS.items() if exporter.quantize is not None)
            raise ConfigError(f"format {self.format!r} has no int8; formats that have: {others}")
        if not 0 <= self.max_drop <= 100:
            raise ConfigError(f"max drop is {self.max_drop:g}; it must be between 0 and 100 points")
        _check_output(self.output, overwrite=self.overwrite)

    def on(self, data: DataConfig, *, named: bool) -> Self:
        """The same with the data to use."""
        return replace(self, data=data, data_named=named)


def _check_output(output: Path, *, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / RECORD_NAME).is_file():
        raise ConfigError(f"output {output} exists and is not an export of Limbert; choose another folder")
    if not overwrite:
        raise ConfigError(f"output {output} holds an export already; choose another folder or --overwrite")


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Exported:
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

    request: Request
    params: int
    file_bytes: int
    metrics: Mapping[str, float]
    comparison: Comparison
    compared_on: str
    quality: Mapping[str, Quality]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        request = self.request
        return {
            "subnet": request.subnet,
            "format": request.format,
            "int8": request.int8,
            "source": Path(request.run).name,
            "params": self.params,
            "file_bytes": self.file_bytes,
            "metrics": dict(self.metrics),
            "compared": {
                "examples": self.comparison.examples,
                "on": self.compared_on,
                "difference": self.comparison.difference,
                "agreement": self.comparison.agreement,
            },
            "quality": {name: quality.to_dict() for name, quality in self.quality.items()},
        }


def export(opened: Opened, request: Request, *, progress: Progress = lambda done, total: None) -> Exported:
    """Export one sub-network of an opened model to a folder, whole or not at all.

    Raises:
        SubnetError: for a sub-network that the model cannot run.
        ConfigError: if a library is missing.
        DataError: if named data cannot be read, or int8 has no labelled examples to be judged by.
        ExportError: if the file does not answer as its source, or int8 loses too much.
        StorageError: if the folder cannot be written.
    """
    exporter = EXPORTERS[request.format]
    for library in exporter.libraries:
        optional_library(library)
    subnet = opened.model.subnet(request.subnet)
    network = opened.model.extract(subnet).eval()
    trial = trial_examples(opened, request.data, required=request.data_named)
    labelled = None
    if request.int8:  # before the work, because it may refuse
        labelled = labelled_examples(opened, request.data, development=request.data_named)
    multiple = type(network).__name__.endswith("ForMultipleChoice")
    batches = list(trial_batches(trial.examples, choices=multiple))
    with replaced_folder(request.output) as folder:
        inputs = tuple(name for name in batches[0] if name in opened.tokenizer.model_input_names)
        exporter.write(network, folder, inputs)
        opened.tokenizer.save_pretrained(folder)
        source = load_runtime("torch", network, threads=request.threads)
        comparison = compare(source, exporter.load(folder, request.threads), batches)
        require_equal(comparison)
        exported = Exported(
            request=request,
            params=count_parameters(opened.model, subnet),
            metrics=measured_metrics(request.run, opened.model.record, request.subnet),
            comparison=comparison,
            compared_on=trial.origin,
            quality={} if labelled is None else _quantized(opened, request, folder, labelled, progress),
            file_bytes=(folder / exporter.weights).stat().st_size,
        )
        write_json(folder / RECORD_NAME, exported.to_dict() | {"versions": versions()})
        card = _card(opened, exported, subnet, network=network, pair=trial.pair)
        (folder / "README.md").write_text(card.to_markdown(), encoding="utf-8")
    return exported


def _quantized(
    opened: Opened, request: Request, folder: Path, examples: TokenizedExamples, progress: Progress
) -> dict[str, Quality]:
    """Turn the files into int8 and measure them against what they were.

    Raises:
        ExportError: if the primary metric falls by more than allowed.
    """
    exporter = EXPORTERS[request.format]
    assert exporter.quantize is not None
    assert opened.task is not None

    def loaded() -> tuple[Runtime, int]:
        return exporter.load(folder, request.threads), (folder / exporter.weights).stat().st_size

    before = loaded()
    exporter.quantize(folder, lambda: calibration_batches(opened, request.data))
    quality = measure({"fp32": before, "int8": loaded()}, examples, task=opened.task, progress=progress)
    metric = opened.task.primary
    values = [quality[name].metrics[metric] for name in ("fp32", "int8")]
    drop = 100 * (values[0] - values[1])
    if drop > request.max_drop:
        raise ExportError(
            f"int8 costs {drop:.2f} points of {metric} ({100 * values[0]:.2f} to {100 * values[1]:.2f} on "
            f"{len(examples)} examples); allowed: {request.max_drop:g} (--max-drop); nothing was written"
        )
    return quality


def _card(opened: Opened, exported: Exported, subnet: Subnet, *, network: PreTrainedModel, pair: bool) -> Card:
    request = exported.request
    return Card(
        name=request.output.absolute().name,
        format=request.format,
        runtime=EXPORTERS[request.format].runtime,
        network=type(network).__name__,
        auto_class=auto_class_of(network),
        needs_code=request.format == "hf" and not is_stock(network),
        source=Path(request.run).name,
        base=base_model(opened.model.record),
        licence=request.licence or licence(request.run),
        task=opened.task,
        pair=pair,
        subnet=(request.subnet, _in_words(subnet, opened.model.shape)),
        params=exported.params,
        metrics=exported.metrics,
        profile=profile_rows(request.run, request.subnet),
        comparison=exported.comparison,
        compared_on=exported.compared_on,
        quality=exported.quality,
        hardware=here(request.threads),
    )


def _in_words(subnet: Subnet, shape: Shape) -> str:
    """``4 of 6 layers (0, 1, 2, 3), 6 of 12 heads and 768 of 1536 neurons in each``."""
    layers = f"{len(subnet.layers)} of {shape.layers} layers ({', '.join(map(str, subnet.layers))})"

    def each(counts: tuple[int, ...], full: int, what: str) -> str:
        if len({*counts}) == 1:
            return f"{counts[0]} of {full} {what}"
        return f"{', '.join(map(str, counts))} of {full} {what}"

    heads, neurons = each(subnet.heads, shape.heads, "heads"), each(subnet.neurons, shape.neurons, "neurons")
    return f"{layers}, {heads} and {neurons} in each"
