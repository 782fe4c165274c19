"""The rows of ``limbert profile``, grouped by how and where they were measured: only those compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from limbert.evaluation.results import ProfileRow, ProfileSetup


@dataclass(frozen=True)
class MeasurementSetting:
    """How and where something was measured.

    Attributes:
        cell: how it was run.
        machine: what tells the hardware apart.
        several: whether the run was measured on more than one machine.
    """

    benchmark_setting: ProfileSetup
    machine: str
    show_machine: bool

    def __str__(self) -> str:
        """For people; the machine only where there are several."""
        return f"{self.benchmark_setting}, {self.machine}" if self.show_machine else str(self.benchmark_setting)


def group_by_setting(profile: Sequence[ProfileRow]) -> dict[MeasurementSetting, dict[str, ProfileRow]]:
    """Rows by setting and sub-network, settings in the order of the file; of rows measured twice the later one."""
    found: dict[MeasurementSetting, dict[str, ProfileRow]] = {}
    several = len({json.dumps(row.hardware, sort_keys=True) for row in profile}) > 1
    for row in profile:
        machine = ", ".join(f"{name} {value}" for name, value in row.hardware.items() if value is not None)
        found.setdefault(MeasurementSetting(row.setup, machine, several), {})[row.subnet] = row
    return found
