"""Rows written in the format that they were read in, so that the same reader reads them."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbert.data.table import Table

Suffix = Literal[".tsv", ".csv", ".jsonl"]


@dataclass(frozen=True)
class RowFormat:
    """How rows are laid out in a file: its ending, its columns, and whether the first line names them."""

    suffix: Suffix
    columns: tuple[str, ...]
    named: bool

    def header(self) -> str:
        """The first line, or nothing where the file has none."""
        return self._cells(self.columns) if self.named and self.suffix != ".jsonl" else ""

    def line(self, cells: Sequence[object]) -> str:
        """One row with its end; in JSON a cell that is None is left out, as in the rows that were read."""
        if self.suffix != ".jsonl":
            return self._cells(cells)
        values = {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell is not None}
        return json.dumps(values, ensure_ascii=False, default=str) + "\n"

    def _cells(self, cells: Sequence[object]) -> str:
        texts = ["" if cell is None else str(cell) for cell in cells]
        if self.suffix == ".tsv":
            return "\t".join(texts) + "\n"
        file = io.StringIO()
        csv.writer(file, lineterminator="\r\n").writerow(texts)  # it quotes what stands in a line's end, lone ones too
        return file.getvalue().removesuffix("\r\n") + "\n"


def format_like(table: Table, *, more: tuple[str, ...], named: bool) -> RowFormat:
    """The format of a table's file with further columns; Parquet files and Hub data sets become JSON lines."""
    path = Path(table.name)
    kinds: dict[str, Suffix] = {".csv": ".csv", ".tsv": ".tsv", ".txt": ".tsv", "": ".tsv"}
    suffix = kinds.get(path.suffix.lower(), ".jsonl") if path.is_file() else ".jsonl"
    return RowFormat(suffix, (*table.columns, *more), named)
