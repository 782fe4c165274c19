"""Lines of ``profile.jsonl``: what a sub-network costs in a runtime, at a batch size and a length, on a machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from limbert.errors import CheckpointError
from limbert.files import atomic_file

PROFILE_NAME = "profile.jsonl"


@dataclass(frozen=True)
class ProfileSetup:
    """How sub-networks were run.

    Attributes:
        backend: ``torch``, ``onnxruntime`` or ``openvino``.
        device: ``cpu`` or ``cuda``.
        threads: on the CPU.
        batch: examples a pass.
        tokens: of each example.
        precision: ``fp32``.
    """

    backend: str
    device: str
    threads: int
    batch: int
    tokens: int
    precision: str = "fp32"

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else ""
        return f"{self.backend} on {self.device}, batch {self.batch}, {self.tokens} tokens{threads}"


@dataclass(frozen=True)
class ProfileRow:
    """What one sub-network costs in one cell.

    Attributes:
        subnet: its name.
        params: parameters, embeddings and head included.
        flops: of one example of this many tokens.
        file_bytes: its weights alone (safetensors), or the ONNX file that the other runtimes load.
        peak_memory_bytes: see `limbert.evaluation.memory`; None where it cannot be measured.
        latency_p50_ms: median milliseconds of a pass.
        latency_p95_ms: 95th percentile.
        throughput: examples a second at the median.
        rounds: passes counted.
        cell: how it was run.
        hardware: where.
        versions: of the libraries.
        measured: when, ISO 8601.
    """

    subnet: str
    params: int
    flops: int
    file_bytes: int
    peak_memory_bytes: int | None
    latency_p50_ms: float
    latency_p95_ms: float
    throughput: float
    rounds: int
    setup: ProfileSetup
    hardware: dict[str, Any]
    versions: dict[str, str]
    measured: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, those of the cell among the others."""
        values = asdict(self)
        return values | values.pop("setup")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The row that `to_dict` wrote.

        Raises:
            KeyError: if a value is missing.
        """
        setup = ProfileSetup(**{field.name: values[field.name] for field in fields(ProfileSetup)})
        return cls(setup=setup, **{field.name: values[field.name] for field in fields(cls) if field.name != "setup"})

    @property
    def key(self) -> tuple[str, ProfileSetup, str]:
        """What a later measurement replaces."""
        return self.subnet, self.setup, json.dumps(self.hardware, sort_keys=True)


def read_profile(path: str | Path) -> list[ProfileRow]:
    """The rows of a profile, in their order.

    Raises:
        CheckpointError: if the file is missing or a row cannot be read.
    """
    rows: list[ProfileRow] = []
    try:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            rows.append(ProfileRow.from_dict(json.loads(line)))
    except OSError as error:
        raise CheckpointError(f"cannot read the profile {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"line {len(rows) + 1} of {path} is no row of a profile: {error!r}") from error
    return rows


def save_profile(run: str | Path, rows: Sequence[ProfileRow]) -> None:
    """Put rows into the run's profile in place of earlier ones of the same kind on the same hardware; all others stay.

    Raises:
        CheckpointError: if the profile that is there cannot be read.
        StorageError: if it cannot be written; the old one stays.
    """
    path = Path(run) / PROFILE_NAME
    earlier = read_profile(path) if path.exists() else []
    kept = {row.key: row for row in earlier} | {row.key: row for row in rows}
    with atomic_file(path) as file:
        file.writelines(json.dumps(row.to_dict()) + "\n" for row in kept.values())
