"""Make augmented copies of the training rows: candidates for all words, then copies, in pieces that can be resumed.

The work is kept in ``train_aug.work`` in the output folder; ``train_aug.*`` and its record appear when all is done.
"""

import functools
import json
import multiprocessing
import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from limbert.augment.candidates import WordChooser, open_masked_lm, read_neighbours
from limbert.augment.sampling import Choice, sample_copies
from limbert.augment.words import FUNCTION_WORDS, read_stop_words
from limbert.core.config import AugmentConfig, DataConfig, TrainConfig
from limbert.core.space import Space
from limbert.data.augmented import LOGITS, ORIGIN, origin_of
from limbert.data.load import TrainTable, read_train_table
from limbert.data.readers import Examples, RowFormat, Suffix, format_like, with_labels
from limbert.data.task_registry import reader_of
from limbert.data.tasks import Task, asked_kind
from limbert.data.tokenize import tokenize
from limbert.errors import ConfigError, DataError, LimbertError, StorageError
from limbert.files import files_digest, replaced_file, rows_digest
from limbert.inference.base_model import Start, load_start
from limbert.inference.predict import subnet_logits
from limbert.model.checkpoint import json_text, versions

_LOOK_EVERY = 0.2  # seconds between looks at what the processes have done


class ShardJob(ABC):
    """What is done for each piece; it travels to the processes, so it must be picklable."""

    name: str  # of the files

    @abstractmethod
    def start(self) -> Callable[[int], str]:
        """Load what is needed, once in each process; what comes back makes the content of a piece by its number."""

    def path(self, folder: Path, number: int) -> Path:
        """The file of a piece."""
        return folder / f"{self.name}-{number:06d}"


def run_shards(
    job: ShardJob,
    folder: Path,
    *,
    count: int,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Do the pieces that are missing, each process on one thread; more than one are started with ``spawn``.

    Args:
        job: what to do.
        folder: for the pieces; it is there.
        count: pieces in all, numbered from 0.
        workers: processes; one works in this process.
        progress: called with pieces done and in all.

    Raises:
        StorageError: if a piece cannot be written.
        LimbertError: if a process ends early.
    """
    missing = [number for number in range(count) if not job.path(folder, number).exists()]
    progress(count - len(missing), count)
    if not missing:
        return
    workers = min(workers, len(missing))
    if workers > 1:
        _run_processes(job, folder, missing, count=count, workers=workers, progress=progress)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make = job.start()
        for done, number in enumerate(missing, count - len(missing) + 1):
            _write(job.path(folder, number), make(number))
            progress(done, count)
    finally:
        torch.set_num_threads(threads)


def _run_processes(
    job: ShardJob,
    folder: Path,
    missing: list[int],
    *,
    count: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    spawn = multiprocessing.get_context("spawn")
    problems = spawn.SimpleQueue()
    processes = [
        spawn.Process(target=_work, args=(job, folder, missing[place::workers], os.getpid(), problems), daemon=True)
        for place in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(_LOOK_EVERY)
            left = sum(not job.path(folder, number).exists() for number in missing)
            progress(count - left, count)
            if any(process.exitcode for process in processes):
                break
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
    if not problems.empty():
        raise LimbertError(str(problems.get()))
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise LimbertError(
            f"a process of {workers} ended early (exit status {failed[0]}); the same call goes on from there"
        )


def _work(
    job: ShardJob, folder: Path, numbers: list[int], parent: int, problems: "multiprocessing.SimpleQueue[str]"
) -> None:
    """One process: it leaves Ctrl-C to its parent and ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        make = job.start()
        for number in numbers:
            if os.getppid() != parent:
                return
            _write(job.path(folder, number), make(number))
    except LimbertError as error:
        problems.put(str(error))
        raise SystemExit(1) from None


def _write(path: Path, content: str) -> None:
    try:
        with replaced_file(path) as file:
            file.write(content)
    except UnicodeEncodeError as error:
        raise StorageError(f"cannot write {path}: {error}") from error


NAME = "train_aug"
_SOURCES = ("lm", "with_logits", "neighbours", "stop_words")  # settings that name files


class AugmentPlace:
    """The file of copies, its record beside it, and the folder of the unfinished work.

    Making one looks at what is there and writes nothing; ``create`` does.

    Args:
        output: the output folder.
        suffix: of the file of copies.
        settings: from ``augment_settings``.
        overwrite: let ``create`` discard a result with other settings instead of refusing it.

    Raises:
        ConfigError: if there is a result with other settings, or a file that is no result.
        StorageError: if its record cannot be read.
    """

    def __init__(self, output: str | Path, *, suffix: str, settings: dict[str, Any], overwrite: bool) -> None:
        if Path(output).exists() and not Path(output).is_dir():
            raise ConfigError(f"output {output} is a file; it must be a folder, or nothing yet")
        self.target = Path(output) / f"{NAME}{suffix}"
        self.work = Path(output) / f"{NAME}.work"
        self._record = Path(output) / f"{NAME}.json"
        self._settings, self._overwrite = settings, overwrite
        unfinished = _read(self.work / "settings.json")
        self._stale = unfinished is not None and unfinished != settings
        if overwrite:
            return
        if unfinished is not None and self._stale:
            raise _other_settings(self.work, unfinished, settings)
        record = _read(self._record)
        if record is not None and record.get("settings") != settings:
            raise _other_settings(self._record, record.get("settings", {}), settings)
        if record is None and self.target.exists():
            raise ConfigError(f"{self.target} exists and was not made by limbert augment; choose another folder")

    def finished(self) -> dict[str, Any] | None:
        """What the record says of this very result; None where it is not finished, or shall be made again.

        Raises:
            ConfigError: if the file is not the one that was made.
        """
        record = None if self._overwrite or not self.target.exists() else _read(self._record)
        if record is not None and record.get("bytes", 0) != self.target.stat().st_size:
            raise ConfigError(f"{self.target} was changed since it was made; --overwrite makes it again")
        return record

    def discard(self) -> None:
        """Delete the work folder: nothing comes of it."""
        shutil.rmtree(self.work, ignore_errors=True)

    def create(self) -> None:
        """Make the work folder, with the settings in it.

        Raises:
            StorageError: if it cannot be written.
        """
        try:
            if self._stale:
                shutil.rmtree(self.work)
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.work}: {error.strerror}") from error
        with replaced_file(self.work / "settings.json") as file:
            file.write(json_text(self._settings))

    def finish(self, record: dict[str, Any]) -> None:
        """Write the record, after the file of copies, and delete the work folder.

        Raises:
            StorageError: if it cannot be written.
        """
        with replaced_file(self._record) as file:
            size = self.target.stat().st_size
            file.write(json_text(record | {"bytes": size, "settings": self._settings}))
        for other in self.target.parent.glob(f"{NAME}.*") if self._overwrite else ():
            if other.suffix in get_args(Suffix) and other != self.target:
                other.unlink()  # of another format, made by an earlier call
        shutil.rmtree(self.work, ignore_errors=True)


def augment_settings(config: AugmentConfig, data: DataConfig, rows: list[Sequence[object]]) -> dict[str, Any]:
    """Everything that decides the result, with digests of what is read, as JSON values.

    Raises:
        DataError: if a file cannot be read.
    """
    named = {name: value for name, value in asdict(config).items() if name in _SOURCES and value is not None}
    values = {
        "augment": {name: value for name, value in asdict(config).items() if name != "output"}
        | {"copies": config.copies_of(len(rows))},
        "data": {name: value for name, value in asdict(data).items() if value not in (None, False)},
        "rows": rows_digest(rows),
        "content": {name: files_digest(value) for name, value in named.items()},
    }
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as when read back
    return parsed


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise StorageError(f"{path} holds {type(found).__name__}, not an object; delete it, or choose another folder")
    return found


def _other_settings(path: Path, old: dict[str, Any], new: dict[str, Any]) -> ConfigError:
    differs = _first_difference(old, new)
    return ConfigError(f"{path} has other settings ({differs}); choose another folder or use --overwrite")


def _first_difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*old, *new] if old.get(key) != new.get(key))
        return _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    return f"{path} {json.dumps(old)} -> {json.dumps(new)}"


TEXTS, ROWS = 32, 64  # in a piece; part of the result, as texts of one piece share batches


@dataclass(frozen=True)
class TextsJob(ShardJob):
    """The candidates for the words of some texts: one JSON line a text, below one with the number of masks."""

    config: AugmentConfig
    texts: list[str]
    name: str = "texts"

    def start(self) -> Callable[[int], str]:
        config = self.config
        network, tokenizer = open_masked_lm(config.lm)
        chooser = WordChooser(
            network,
            tokenizer,
            neighbours=None if config.neighbours == "embeddings" else read_neighbours(config.neighbours),
            keep=FUNCTION_WORDS if config.stop_words is None else read_stop_words(config.stop_words),
            count=config.candidates,
            context=config.context,
            precision=config.precision,
        )

        def make(number: int) -> str:
            found, masked = chooser.choose(self.texts[number * TEXTS : (number + 1) * TEXTS])
            lines = [[[choice.start, choice.end, choice.words] for choice in choices] for choices in found]
            return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [masked, *lines])

        return make


@dataclass(frozen=True)
class RowsJob(ShardJob):
    """The copies of some rows as they stand in the file that is made, below a line with their number.

    A teacher's logits follow where one is named.
    """

    config: AugmentConfig
    data: DataConfig
    task: Task
    rows: list[Sequence[object]]
    texts: list[tuple[str, ...]]  # the one or two texts of each row
    numbers: list[tuple[int, ...]]  # of these texts among all different ones
    places: tuple[int, ...]  # of the text columns
    layout: RowFormat
    folder: Path
    name: str = "rows"

    def start(self) -> Callable[[int], str]:
        teacher = None if self.config.with_logits is None else self._teacher(self.config.with_logits)
        read = functools.lru_cache(64)(lambda number: _read_choices(self.folder / f"texts-{number:06d}"))
        count = self.config.copies_of(len(self.rows))

        def make(piece: int) -> str:
            made: list[tuple[int, tuple[str, ...]]] = []
            for row in range(piece * ROWS, min((piece + 1) * ROWS, len(self.rows))):
                copies = sample_copies(
                    self.texts[row],
                    [read(number // TEXTS)[number % TEXTS] for number in self.numbers[row]],
                    count=count,
                    probability=self.config.probability,
                    generator=np.random.default_rng([self.config.seed, row]),
                )
                made += [(row, copy) for copy in copies]
            logits = None if teacher is None or not made else teacher([copy for _, copy in made])
            lines = [
                self._line(row, copy, None if logits is None else logits[place])
                for place, (row, copy) in enumerate(made)
            ]
            return "".join([f"{len(lines)}\n", *lines])

        return make

    def _line(self, row: int, copy: tuple[str, ...], logits: np.ndarray | None) -> str:
        cells = list(self.rows[row])
        for place, text in zip(self.places, copy, strict=True):
            cells[place] = text
        more = [] if logits is None else [" ".join(f"{value:.4f}" for value in logits)]
        return self.layout.line([*cells, origin_of(self.texts[row]), *more])

    def _teacher(self, path: str) -> Callable[[list[tuple[str, ...]]], np.ndarray]:
        """Answers with the logits ``(copies, outputs)``, in the order of the task's labels."""
        start = open_teacher(path, self.task)
        model = start.model(Space())
        length = min(self.data.max_length, start.longest)
        order = [start.task.labels.index(name) for name in self.task.labels] or [0]

        def answer(copies: list[tuple[str, ...]]) -> np.ndarray:
            pairs = tuple(copy[1] for copy in copies) if len(copies[0]) > 1 else None
            examples = Examples(tuple(copy[0] for copy in copies), pairs, None)
            tokens = tokenize(examples, start.tokenizer, max_length=length, cache=False)
            found = subnet_logits(
                model, tokens, subnets={"full": model.full}, batch_size=64, precision=self.config.precision
            )
            return found["full"][:, order]

        return answer


def open_teacher(path: str, task: Task) -> Start:
    """A model that is fine-tuned on the task, stock or elastic.

    Raises:
        ConfigError: if it is not.
        CheckpointError: if it cannot be read.
    """
    start = load_start(TrainConfig(model=path, output="-"), task)
    if not start.finetuned:
        wanted = ", ".join(task.labels) or "one score"
        raise ConfigError(f"teacher {path} is not fine-tuned for this task; it must answer {wanted}")
    return start


def _read_choices(path: Path) -> list[list[Choice]]:
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]  # the first is the number of masks
    return [[Choice(start, end, tuple(words)) for start, end, words in json.loads(line)] for line in lines]


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
