"""The table of export formats, where a new format is one entry; and the export of a policy in one of them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from limbert.inference import policy_runtime
from limbert.inference.quantize import CalibrationLoader
from limbert.inference.runtimes import RUNTIMES, Runtime, RuntimeLibrary, load_runtime
from limbert.inference.segments import SegmentedPolicy
from limbert.model.standalone import load_standalone, stock_config


@dataclass(frozen=True)
class Exporter:
    """One format."""

    runtime: str  # key of ``RUNTIMES``
    write: Callable[[PreTrainedModel, Path, tuple[str, ...]], None]  # into a folder, with these inputs
    load: Callable[[Path, int | None], Runtime]  # the folder, with so many threads
    weights_name: str  # the file with the weights; of a policy a pattern for all of them
    model_name: str = ""  # the file that the runtime loads; empty if it is the folder
    quantize: Callable[[Path, CalibrationLoader], None] | None = None  # the model file to int8, in place

    @property
    def library(self) -> RuntimeLibrary:
        """The runtime."""
        return RUNTIMES[self.runtime]

    def file_bytes(self, folder: Path) -> int:
        """Size of the files with the weights."""
        return sum(file.stat().st_size for file in folder.glob(self.weights_name))


def _runtime_exporter(name: str) -> Exporter:
    """The files that a runtime loads, and the stock config."""
    library = RUNTIMES[name]

    def write(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
        assert library.write is not None
        library.write(network, folder, inputs)
        stock_config(network).save_pretrained(folder)

    def load(folder: Path, threads: int | None) -> Runtime:
        return load_runtime(name, folder / library.model_name, threads=threads)

    return Exporter(name, write, load, library.weights_name, library.model_name, library.quantize)


def policy_exporter(exporter: Exporter, policy: SegmentedPolicy) -> Exporter:
    """The same format for a dynamic policy: its segments, and the driver that runs them without Limbert."""

    def write(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
        policy.write(folder)
        shutil.copy(policy_runtime.__file__, folder)

    return replace(
        exporter,
        weights_name=f"segment-*/{exporter.weights_name}",
        write=write,
        load=policy.open,
        model_name=policy.file_name,
        quantize=lambda path, load_batches: policy.quantize(path.parent, load_batches),
    )


EXPORTERS: dict[str, Exporter] = {
    "hf": Exporter(
        "torch",
        lambda network, folder, inputs: network.save_pretrained(folder),
        lambda folder, threads: load_runtime("torch", load_standalone(folder), threads=threads),
        "model.safetensors",
    ),
    "onnx": _runtime_exporter("onnxruntime"),
    "openvino": _runtime_exporter("openvino"),
}
