"""Make augmented copies of the training rows: candidates for all words, then copies, in pieces that can be resumed.

The work is kept in ``train_aug.work`` in the output folder; ``train_aug.*`` and its record appear when all is done.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbert.core.augmentation import AugmentConfig
from limbert.core.config import DataConfig
from limbert.data.augmented import LOGITS, ORIGIN
from limbert.data.readers import with_labels
from limbert.data.task_registry import reader_of
from limbert.data.load import TrainTable, read_train_table
from limbert.data.neighbours import read_neighbours
from limbert.data.tasks import asked_kind
from limbert.augment.words import read_stop_words
from limbert.data.write import RowFormat, format_like
from limbert.errors import ConfigError, DataError
from limbert.model.checkpoint import versions
from limbert.files import replaced_file
from limbert.run.augment_jobs import ROWS, TEXTS, RowsJob, TextsJob, open_teacher
from limbert.run.augment_place import AugmentPlace, augment_settings
from limbert.augment.candidates import open_masked_lm
from limbert.run.shards import run_shards

AskProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Augmentation:
    """What was made.

    Attributes:
        path: the file of copies.
        rows: training rows.
        copies: rows in the file.
        masked: words that the language model was asked for.
        masks_per_minute: of the call that finished it; None where all words were there from earlier calls.
    """

    path: Path
    rows: int
    copies: int
    masked: int
    masks_per_minute: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        counts = {"rows": self.rows, "copies": self.copies, "masked_words": self.masked}
        return {"file": str(self.path), **counts, "masks_per_minute": self.masks_per_minute}


def augment(
    config: AugmentConfig,
    data: DataConfig,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: AskProgress = lambda what, done, total: None,
) -> Augmentation:
    """Write ``train_aug.*`` into the output folder; killed, the same call goes on and ends with the same file.

    Args:
        config: how copies are made.
        data: where the training rows are.
        workers: processes; the result does not depend on them. With more than one, a program of your own needs the
            usual ``if __name__ == "__main__"``.
        overwrite: replace a result with other settings, finished or not.
        progress: called with what is done, and pieces done and in all.

    Raises:
        ConfigError: settings that contradict each other, or a result with other settings that is there.
        DataError: a missing or unusable file, column or row.
        CheckpointError: for the language model or the teacher.
        StorageError: if something cannot be written.
    """
    if reader_of(asked_kind(data)) is not None:
        raise ConfigError(
            f"task is {asked_kind(data)}; copies are made for texts and pairs of texts with labels in a column"
        )
    training = read_train_table(data)
    training = replace(training, table=training.table.walked()[0])  # copies repeat whole rows
    rows = _rows(training, data)
    more = (ORIGIN,) if config.with_logits is None else (ORIGIN, LOGITS)
    layout = format_like(training.table, more=more, named=not training.columns.by_number)
    settings = augment_settings(config, data, rows)
    place = AugmentPlace(config.output, suffix=layout.suffix, settings=settings, overwrite=overwrite)
    found = place.finished()
    if found is not None:
        return Augmentation(
            place.target, found["rows"], found["copies"], found["masked_words"], found["masks_per_minute"]
        )
    _check_sources(config, training)
    first, second = _jobs(config, data, training, rows=rows, layout=layout, work=place.work)
    place.create()
    masked, rate = _choose_words(first, place.work, workers=workers, progress=progress)
    pieces = -(-len(rows) // ROWS)
    run_shards(
        second,
        place.work,
        count=pieces,
        workers=workers if config.with_logits is not None else 1,
        progress=functools.partial(progress, "writing copies"),
    )
    try:
        copies = _join(place.target, layout, [second.path(place.work, number) for number in range(pieces)])
    except DataError:
        place.discard()
        raise
    made = Augmentation(place.target, len(rows), copies, masked, rate)
    place.finish(made.to_dict() | {"versions": versions()})
    return made


def _rows(training: TrainTable, data: DataConfig) -> list[Sequence[object]]:
    """The rows that train, whole: those with text and a label of the task."""
    for name in {ORIGIN, LOGITS} & {*training.table.columns}:
        raise DataError(f"{training.table.name}: it has a column {name!r}; it is augmented already")
    with_labels(training.raw, training.reader, skip_bad_rows=data.skip_bad_rows)  # complains about a bad label
    lines = set()
    for line, label in zip(training.raw.lines, training.raw.labels or (), strict=True):
        try:
            training.reader.read(label)
        except ValueError:
            continue
        lines.add(line)
    return [row.cells for row in training.table.rows() if row.line in lines]


def _check_sources(config: AugmentConfig, training: TrainTable) -> None:
    """Refuse what cannot be used before anything is written."""
    open_masked_lm(config.lm)
    if config.neighbours != "embeddings":
        read_neighbours(config.neighbours, most=100)
    if config.stop_words is not None:
        read_stop_words(config.stop_words)
    if config.with_logits is not None:
        open_teacher(config.with_logits, training.task)


def _jobs(
    config: AugmentConfig,
    data: DataConfig,
    training: TrainTable,
    *,
    rows: list[Sequence[object]],
    layout: RowFormat,
    work: Path,
) -> tuple[TextsJob, RowsJob]:
    names = (training.columns.text, training.columns.pair)
    places = tuple(training.table.columns.index(name) for name in names if name is not None)
    texts = [tuple(str(row[place]) for place in places) for row in rows]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for part in texts for text in part))}
    copies = RowsJob(
        config,
        data,
        training.task,
        rows=rows,
        texts=texts,
        numbers=[tuple(numbers[text] for text in part) for part in texts],
        places=places,
        layout=layout,
        folder=work,
    )
    return TextsJob(config, [*numbers]), copies


def _choose_words(job: TextsJob, work: Path, *, workers: int, progress: AskProgress) -> tuple[int, int | None]:
    """Ask for the candidates of all texts: how many words were masked, and how many a minute in this call."""
    count = -(-len(job.texts) // TEXTS)
    paths = [job.path(work, number) for number in range(count)]
    missing = [path for path in paths if not path.exists()]
    began = time.monotonic()
    run_shards(job, work, count=count, workers=workers, progress=functools.partial(progress, "choosing words"))
    minutes = (time.monotonic() - began) / 60
    masked = {path: _first_number(path.read_bytes()) for path in paths}
    now = sum(masked[path] for path in missing)
    return sum(masked.values()), round(now / minutes) if now else None


def _join(target: Path, layout: RowFormat, pieces: list[Path]) -> int:
    """The pieces one after the other in one file; how many rows they are."""
    copies = 0
    with replaced_file(target) as file:
        file.write(layout.header())
        for piece in pieces:
            content = piece.read_bytes()  # as text, a carriage return in a cell would become a line
            copies += _first_number(content)
            file.write(content.partition(b"\n")[2].decode())
        if not copies:
            raise DataError("in no row a word was replaced; nothing was written")
    return copies


def _first_number(content: bytes) -> int:
    return int(content.partition(b"\n")[0])
