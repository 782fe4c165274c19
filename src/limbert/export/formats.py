"""The table of export formats; a new format is one entry."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from limbert.inference.quantize import CalibrationLoader
from limbert.inference.runtimes import RUNTIMES, Runtime, load_runtime
from limbert.model.standalone import load_standalone, stock_config


@dataclass(frozen=True)
class Exporter:
    """One format."""

    runtime_title: str  # name of the runtime for readers
    runtime: str  # its key in ``RUNTIMES``
    weights_name: str  # the file with the weights
    write: Callable[[PreTrainedModel, Path, tuple[str, ...]], None]  # into a folder, with these inputs
    model_name: str = ""  # the file that the runtime loads; empty if it is the folder
    libraries: tuple[str, ...] = ()  # libraries of the extra ``export`` that it needs
    quantize: Callable[[Path, CalibrationLoader], None] | None = None  # to int8, in place

    def load(self, folder: Path, threads: int | None) -> Runtime:
        """Load the folder in its own runtime."""
        source = folder / self.model_name if self.model_name else load_standalone(folder)
        return load_runtime(self.runtime, source, threads=threads)


def _runtime_exporter(name: str) -> Exporter:
    """The files that a runtime loads, and the stock config."""
    library = RUNTIMES[name]
    assert library.write is not None
    write_files = library.write

    def write(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
        write_files(network, folder, inputs)
        stock_config(network).save_pretrained(folder)

    return Exporter(
        library.title, name, library.weights_name, write, library.model_name, library.libraries, library.quantize
    )


EXPORTERS: dict[str, Exporter] = {
    "hf": Exporter(
        "PyTorch with Transformers",
        "torch",
        "model.safetensors",
        lambda network, folder, inputs: network.save_pretrained(folder),
    ),
    "onnx": _runtime_exporter("onnxruntime"),
    "openvino": _runtime_exporter("openvino"),
}
