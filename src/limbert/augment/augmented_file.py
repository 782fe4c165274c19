"""The file that `limbert augment` writes: its format, its record, and the check that a call continues the same work."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbert.core.config import AugmentConfig, DataConfig
from limbert.data.augmented import LOGITS_COLUMN, SOURCE_ID_COLUMN
from limbert.data.sources import TrainTable
from limbert.data.table import file_format
from limbert.data.text_rows import format_csv_row
from limbert.errors import ConfigError, StorageError
from limbert.files import atomic_file, changed_settings, json_fingerprint
from limbert.model.checkpoint import library_versions, to_json

OUTPUT_NAME, RECORD_NAME = "train_aug", "train_aug.json"  # of settings, counts and versions
_SUFFIXES = {".csv": ".csv", ".tsv": ".tsv", ".txt": ".tsv", "": ".tsv"}  # all others become .jsonl


@dataclass(frozen=True)
class AugmentationResult:
    """The result of an augmentation."""

    path: Path  # the file of augmented examples
    num_examples: int  # training examples
    num_augmented: int  # augmented examples in the file
    num_masked_words: int  # words predicted by the language model
    masks_per_minute: int | None  # of the call that finished it; None if all words were predicted by earlier calls

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the keys of ``train_aug.json``."""
        counts = {"rows": self.num_examples, "copies": self.num_augmented, "masked_words": self.num_masked_words}
        return {"file": str(self.path), **counts, "masks_per_minute": self.masks_per_minute}


@dataclass(frozen=True)
class AugmentedFile:
    """A file of augmented examples in the format of the training file, with its record and its work folder."""

    folder: Path
    path: Path  # of the file; Parquet files and Hub data sets become JSON lines
    work: Path  # folder of finished shards, with the settings in ``settings.json``
    columns: tuple[str, ...]  # the training file's, the id of the training example, perhaps logits
    text_columns: tuple[str, ...]
    has_header: bool
    settings: dict[str, Any]

    @classmethod
    def open(
        cls, config: AugmentConfig, data: DataConfig, training: TrainTable, *, rows: Sequence[Mapping[str, Any]]
    ) -> "AugmentedFile":
        """Look at the folder; nothing is written."""
        folder, columns, source = Path(config.output), training.columns, Path(training.table.name)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"output {folder} is a file; choose a folder, new or existing")
        extra = (SOURCE_ID_COLUMN,) if config.with_logits is None else (SOURCE_ID_COLUMN, LOGITS_COLUMN)
        settings = asdict(config) | {"copies": config.augmented_per_example(len(rows))}
        del settings["output"]
        values = {  # all that decides the output
            "augment": settings,
            "data": {name: value for name, value in asdict(data).items() if value not in (None, False)},
            "rows": json_fingerprint([[*row.values()] for row in rows]),
        }
        suffix = _SUFFIXES.get(file_format(source), ".jsonl") if source.is_file() else ".jsonl"
        return cls(
            folder,
            folder / f"{OUTPUT_NAME}{suffix}",
            folder / f"{OUTPUT_NAME}.work",
            (*training.table.columns, *extra),
            tuple(name for name in (columns.text, columns.pair) if name is not None),
            not columns.are_positions,
            json.loads(json.dumps(values)),  # tuples become lists, as when read back
        )

    def finished_result(self) -> AugmentationResult | None:
        """The result of an earlier call with these settings; None if there is none, or an unfinished one.

        Raises:
            ConfigError: the folder holds a result with other settings, or a file that was not made here or changed.
        """
        for path in (self.work / "settings.json", self.folder / RECORD_NAME):
            record = _read_json_object(path)
            if record is not None and (changed := changed_settings(record.get("settings", {}), self.settings)):
                difference = next(iter(changed.values()))
                raise ConfigError(f"{path} has other settings ({difference}); choose another folder or use --overwrite")
        if not self.path.exists():
            return None
        if record is None:
            raise ConfigError(f"{self.path} exists and was not made by limbert augment; choose another folder")
        if record.get("bytes", 0) != self.path.stat().st_size:
            raise ConfigError(f"{self.path} was changed since it was made; use --overwrite to make it again")
        return AugmentationResult(
            self.path, record["rows"], record["copies"], record["masked_words"], record["masks_per_minute"]
        )

    def create_work_folder(self, *, overwrite: bool) -> None:
        """Create the folder of finished shards; overwriting deletes those of other settings."""
        path, settings = self.work / "settings.json", {"settings": self.settings}
        if overwrite and _read_json_object(path) != settings:
            shutil.rmtree(self.work, ignore_errors=True)
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.work}: {error.strerror}") from error
        with atomic_file(path) as file:
            file.write(to_json(settings))

    def texts_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The one or two texts of a training row."""
        return tuple(str(row[name]) for name in self.text_columns)

    def format_row(
        self, row: Mapping[str, Any], texts: Sequence[str], source_id: str, logits: Sequence[float] | None
    ) -> str:
        """One line of the file: a training row with other texts, its ``source_id`` and a teacher's logits."""
        cells = {**row, **dict(zip(self.text_columns, texts, strict=True)), SOURCE_ID_COLUMN: source_id}
        if logits is not None:
            cells[LOGITS_COLUMN] = " ".join(f"{value:.4f}" for value in logits)
        if self.path.suffix == ".jsonl":
            known = {name: cell for name, cell in cells.items() if cell is not None}
            return json.dumps(known, ensure_ascii=False, default=str) + "\n"
        return self._format_cells([cells.get(name) for name in self.columns])

    def _format_cells(self, cells: Sequence[object]) -> str:
        if self.path.suffix == ".csv":
            return format_csv_row(cells)
        return "\t".join("" if cell is None else str(cell) for cell in cells) + "\n"

    def finish(self, shards: Sequence[Path], result: AugmentationResult) -> None:
        """Write the file, then its record; delete the work folder and files of other formats from earlier calls."""
        with atomic_file(self.path) as file:
            if self.has_header and self.path.suffix != ".jsonl":
                file.write(self._format_cells(self.columns))
            for shard in shards:
                file.writelines(json.loads(shard.read_text(encoding="utf-8"))["lines"])
        record = result.to_dict() | {"versions": library_versions(), "bytes": self.path.stat().st_size}
        with atomic_file(self.folder / RECORD_NAME) as file:
            file.write(to_json(record | {"settings": self.settings}))
        for suffix in {".jsonl", *_SUFFIXES.values()} - {self.path.suffix}:
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)


def _read_json_object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path} holds {type(value).__name__}, not an object; delete it or choose another folder")
    return value
