"""What somebody asks to be exported, checked before anything is loaded."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from limbert.core.config import DataConfig
from limbert.errors import ConfigError
from limbert.export.formats import EXPORTERS

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
