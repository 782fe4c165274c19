"""Settings and outcome of an export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.core.config import require
from limbert.core.verb_config import ExportOptions
from limbert.errors import ConfigError
from limbert.export.formats import EXPORTERS
from limbert.export.verify import RuntimeBenchmark
from limbert.export.vocabulary import CHARACTERS, VocabularyReduction
from limbert.inference.parity import ParityResult
from limbert.inference.policy import Policy

EXPORT_RECORD_NAME = "export.json"  # marks a folder as an export


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ExportOptions):
    """Settings of an export, see `export_model`."""

    run: str
    output: Path
    subnet: str  # its name, or that of the policy
    threads: int | None = None

    def __post_init__(self) -> None:
        require(self.format in EXPORTERS, "format", self.format, f"one of {', '.join(EXPORTERS)}")
        if self.int8 and EXPORTERS[self.format].quantize is None:
            others = ", ".join(name for name, exporter in EXPORTERS.items() if exporter.quantize is not None)
            raise ConfigError(f"format {self.format!r} has no int8; formats that have: {others}")
        allowed = CHARACTERS if self.vocabulary else CHARACTERS[:1]
        options = f"one of {', '.join(CHARACTERS)} (texts with --vocabulary)"
        require(self.characters in allowed, "characters", self.characters, options)
        require(0 <= self.max_drop <= 100, "max drop", self.max_drop, "between 0 and 100 points")
        if not self.output.exists() or (self.output.is_dir() and not any(self.output.iterdir())):
            return
        if not (self.output / EXPORT_RECORD_NAME).is_file():
            raise ConfigError(f"output {self.output} exists and is not an export of Limbert; choose another folder")
        if not self.overwrite:
            raise ConfigError(f"output {self.output} holds an export already; choose another folder or --overwrite")


@dataclass(frozen=True)
class ExportResult:
    """The outcome of an export."""

    config: ExportConfig
    policy: Policy | None  # the dynamic policy that was exported; None: one sub-network
    params: int | None  # parameters of the sub-network; None for a policy
    file_bytes: int  # of the files with the weights
    dev_metrics: Mapping[str, float]  # on the development set, from the training's results; empty if unknown
    parity: ParityResult  # the outputs compared with the source's; with int8, those before quantisation
    parity_data: str  # what the compared examples were
    benchmarks: Mapping[str, RuntimeBenchmark]  # with int8: ``fp32`` and ``int8``
    vocabulary: VocabularyReduction | None = None  # with a smaller vocabulary

    @property
    def title(self) -> str:
        """The name of the sub-network, or that of the policy with its settings."""
        name, policy = self.config.subnet, "" if self.policy is None else str(self.policy)
        return f"{name} ({policy})" if policy and not policy.startswith(name) else policy or name

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "subnet": self.config.subnet if self.policy is None else None,
            "policy": None if self.policy is None else self.policy.to_dict(),
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
            "quality": {name: vars(benchmark) for name, benchmark in self.benchmarks.items()},
            **({"vocabulary": self.vocabulary.to_dict()} if self.vocabulary else {}),
        }
