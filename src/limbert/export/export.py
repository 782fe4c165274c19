"""Exporting one sub-network: write, reload in its own runtime, compare, and only then take the place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from limbert.core.subnet import Shape, Subnet
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ExportError
from limbert.model.checkpoint import versions, write_json
from limbert.files import replaced_folder
from limbert.inference.load import Opened
from limbert.evaluation.subnets import count_parameters
from limbert.export.model_card import Card
from limbert.export.verify import Comparison, compare, require_equal
from limbert.export.examples import calibration_batches, labelled_examples, trial_batches, trial_examples
from limbert.export.formats import EXPORTERS
from limbert.export.huggingface import auto_class_of, is_stock
from limbert.export.libraries import optional_library
from limbert.export.origin import base_model, licence, measured_metrics, profile_rows
from limbert.export.quality import Quality, measure
from limbert.export.request import RECORD_NAME, Request
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.evaluation.hardware import here

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
