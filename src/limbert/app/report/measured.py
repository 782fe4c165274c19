"""The rows of ``limbert profile``, grouped by the setting they were measured in: only those compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbert.app.report.numbers import several


@dataclass(frozen=True)
class Setting:
    """How something was measured."""

    backend: str
    precision: str
    device: str
    threads: int
    batch: int
    tokens: int
    machine: str

    def __str__(self) -> str:
        """For people; the machine is told elsewhere."""
        threads = f", {several(self.threads, 'thread')}" if self.device == "cpu" else ""
        where = f"{self.device}{threads}"
        return f"{self.backend} {self.precision}, {where}, batch {self.batch}, {self.tokens} tokens"


def by_setting(profile: Sequence[dict[str, Any]]) -> dict[Setting, dict[str, dict[str, Any]]]:
    """Rows by setting and sub-network, settings in the order of the file; of rows measured twice the later one."""
    found: dict[Setting, dict[str, dict[str, Any]]] = {}
    for row in profile:
        setting = Setting(
            backend=row["backend"],
            precision=str(row.get("precision", "fp32")),
            device=str(row.get("device", "cpu")),
            threads=row.get("threads", 1),
            batch=row.get("batch", 1),
            tokens=row.get("tokens", 0),
            machine=repr(sorted(row.get("hardware", {}).items())),
        )
        found.setdefault(setting, {})[row["subnet"]] = row
    return found
