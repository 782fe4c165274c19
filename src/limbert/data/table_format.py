"""Writing rows like the rows of a table that was read: the suffix, the columns, and the header of the new file."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbert.data.table import Table, file_format

FileSuffix = Literal[".tsv", ".csv", ".jsonl"]


@dataclass(frozen=True)
class TableFormat:
    """How rows are written to a file: its suffix, its columns, and whether the first line names them."""

    suffix: FileSuffix
    columns: tuple[str, ...]
    has_header: bool

    def header(self) -> str:
        """The first line, or nothing where the file has none."""
        return self._format_cells(self.columns) if self.has_header and self.suffix != ".jsonl" else ""

    def format_row(self, cells: Sequence[object]) -> str:
        """One row with its line end; JSON leaves out a cell that is None."""
        if self.suffix != ".jsonl":
            return self._format_cells(cells)
        values = {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell is not None}
        return json.dumps(values, ensure_ascii=False, default=str) + "\n"

    def _format_cells(self, cells: Sequence[object]) -> str:
        texts = ["" if cell is None else str(cell) for cell in cells]
        if self.suffix == ".tsv":
            return "\t".join(texts) + "\n"
        file = io.StringIO()
        csv.writer(file, lineterminator="\r\n").writerow(texts)  # it quotes lone line ends too
        return file.getvalue().removesuffix("\r\n") + "\n"


def table_format_of(table: Table, *, extra_columns: tuple[str, ...], has_header: bool) -> TableFormat:
    """The format of a table's file with further columns; Parquet files and Hub data sets become JSON lines."""
    path = Path(table.name)
    suffixes: dict[str, FileSuffix] = {".csv": ".csv", ".tsv": ".tsv", ".txt": ".tsv", "": ".tsv"}
    suffix = suffixes.get(file_format(path), ".jsonl") if path.is_file() else ".jsonl"
    return TableFormat(suffix, (*table.columns, *extra_columns), has_header)
