"""JSON lines that a run keeps: read so that an error names the file and the line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbert.errors import CheckpointError


def read_json_lines(path: str | Path, *, needs: Mapping[str, type]) -> list[dict[str, Any]]:
    """The objects of a JSON lines file in their order; blank lines are skipped.

    Args:
        path: the file.
        needs: keys that every object must have, with the type of their value; whole numbers serve as ``float``.

    Raises:
        CheckpointError: if the file cannot be read, or a line is no object, lacks a key or has a value of another
            type, naming file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise CheckpointError(f"{path}, line {number}: {type(row).__name__}, not an object")
        for key, wanted in needs.items():
            if key not in row:
                raise CheckpointError(f"{path}, line {number}: lacks {key!r}")
            if not _is_a(row[key], wanted):
                raise CheckpointError(f"{path}, line {number}: {key} is {row[key]!r}; it must be a {wanted.__name__}")
        rows.append(row)
    return rows


def _is_a(value: Any, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, wanted)
