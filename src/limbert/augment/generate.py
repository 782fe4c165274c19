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

from limbert.augment.candidates import WordCandidateGenerator, load_masked_lm, read_word_vectors
from limbert.augment.sampling import ReplaceableWord, sample_augmented_texts
from limbert.augment.words import FUNCTION_WORDS, read_stop_words
from limbert.core.config import AugmentConfig, DataConfig, TrainConfig
from limbert.core.space import Space
from limbert.data.augmented import LOGITS_COLUMN, SOURCE_ID_COLUMN, compute_source_id
from limbert.data.load import TrainTable, read_train_table
from limbert.data.readers import Examples, parse_labels
from limbert.data.table_format import FileSuffix, TableFormat, table_format_of
from limbert.data.task_registry import file_reader_for
from limbert.data.tasks import Task, requested_task_type
from limbert.data.tokenize import tokenize_texts
from limbert.errors import ConfigError, DataError, LimbertError, StorageError
from limbert.files import atomic_file, files_fingerprint, json_fingerprint
from limbert.inference.base_model import TaskBaseCheckpoint, load_base_checkpoint
from limbert.inference.predict import predict_subnet_logits
from limbert.model.checkpoint import library_versions, to_json

_POLL_INTERVAL = 0.2  # seconds between looks at what the processes have done


class ShardJob(ABC):
    """What is done for each piece; it travels to the processes, so it must be picklable."""

    name: str  # of the files

    @abstractmethod
    def load_worker(self) -> Callable[[int], str]:
        """Load what is needed, once in each process; what comes back makes the content of a piece by its number."""

    def shard_path(self, folder: Path, index: int) -> Path:
        """The file of a piece."""
        return folder / f"{self.name}-{index:06d}"


def run_shards(
    job: ShardJob,
    folder: Path,
    *,
    num_shards: int,
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
    missing = [number for number in range(num_shards) if not job.shard_path(folder, number).exists()]
    progress(num_shards - len(missing), num_shards)
    if not missing:
        return
    workers = min(workers, len(missing))
    if workers > 1:
        _run_processes(job, folder, missing, num_shards=num_shards, workers=workers, progress=progress)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make = job.load_worker()
        for done, number in enumerate(missing, num_shards - len(missing) + 1):
            _write_shard(job.shard_path(folder, number), make(number))
            progress(done, num_shards)
    finally:
        torch.set_num_threads(threads)


def _run_processes(
    job: ShardJob,
    folder: Path,
    missing: list[int],
    *,
    num_shards: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    spawn = multiprocessing.get_context("spawn")
    problems = spawn.SimpleQueue()
    processes = [
        spawn.Process(
            target=_worker_main, args=(job, folder, missing[place::workers], os.getpid(), problems), daemon=True
        )
        for place in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(_POLL_INTERVAL)
            left = sum(not job.shard_path(folder, number).exists() for number in missing)
            progress(num_shards - left, num_shards)
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


def _worker_main(
    job: ShardJob, folder: Path, indices: list[int], parent_pid: int, errors: "multiprocessing.SimpleQueue[str]"
) -> None:
    """One process: it leaves Ctrl-C to its parent and ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        make = job.load_worker()
        for number in indices:
            if os.getppid() != parent_pid:
                return
            _write_shard(job.shard_path(folder, number), make(number))
    except LimbertError as error:
        errors.put(str(error))
        raise SystemExit(1) from None


def _write_shard(path: Path, content: str) -> None:
    try:
        with atomic_file(path) as file:
            file.write(content)
    except UnicodeEncodeError as error:
        raise StorageError(f"cannot write {path}: {error}") from error


OUTPUT_NAME = "train_aug"
_FILE_SETTINGS = ("lm", "with_logits", "neighbours", "stop_words")  # settings that name files


class AugmentationDirectory:
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
        self.output_path = Path(output) / f"{OUTPUT_NAME}{suffix}"
        self.work_dir = Path(output) / f"{OUTPUT_NAME}.work"
        self._record_path = Path(output) / f"{OUTPUT_NAME}.json"
        self._settings, self._overwrite = settings, overwrite
        unfinished = _read_json_object(self.work_dir / "settings.json")
        self._stale = unfinished is not None and unfinished != settings
        if overwrite:
            return
        if unfinished is not None and self._stale:
            raise _settings_error(self.work_dir, unfinished, settings)
        record = _read_json_object(self._record_path)
        if record is not None and record.get("settings") != settings:
            raise _settings_error(self._record_path, record.get("settings", {}), settings)
        if record is None and self.output_path.exists():
            raise ConfigError(f"{self.output_path} exists and was not made by limbert augment; choose another folder")

    def finished_record(self) -> dict[str, Any] | None:
        """What the record says of this very result; None where it is not finished, or shall be made again.

        Raises:
            ConfigError: if the file is not the one that was made.
        """
        record = None if self._overwrite or not self.output_path.exists() else _read_json_object(self._record_path)
        if record is not None and record.get("bytes", 0) != self.output_path.stat().st_size:
            raise ConfigError(f"{self.output_path} was changed since it was made; --overwrite makes it again")
        return record

    def discard(self) -> None:
        """Delete the work folder: nothing comes of it."""
        shutil.rmtree(self.work_dir, ignore_errors=True)

    def create(self) -> None:
        """Make the work folder, with the settings in it.

        Raises:
            StorageError: if it cannot be written.
        """
        try:
            if self._stale:
                shutil.rmtree(self.work_dir)
            self.work_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.work_dir}: {error.strerror}") from error
        with atomic_file(self.work_dir / "settings.json") as file:
            file.write(to_json(self._settings))

    def finish(self, record: dict[str, Any]) -> None:
        """Write the record, after the file of copies, and delete the work folder.

        Raises:
            StorageError: if it cannot be written.
        """
        with atomic_file(self._record_path) as file:
            size = self.output_path.stat().st_size
            file.write(to_json(record | {"bytes": size, "settings": self._settings}))
        for other in self.output_path.parent.glob(f"{OUTPUT_NAME}.*") if self._overwrite else ():
            if other.suffix in get_args(FileSuffix) and other != self.output_path:
                other.unlink()  # of another format, made by an earlier call
        shutil.rmtree(self.work_dir, ignore_errors=True)


def augmentation_settings(config: AugmentConfig, data: DataConfig, rows: list[Sequence[object]]) -> dict[str, Any]:
    """Everything that decides the result, with digests of what is read, as JSON values.

    Raises:
        DataError: if a file cannot be read.
    """
    named = {name: value for name, value in asdict(config).items() if name in _FILE_SETTINGS and value is not None}
    values = {
        "augment": {name: value for name, value in asdict(config).items() if name != "output"}
        | {"copies": config.augmented_per_example(len(rows))},
        "data": {name: value for name, value in asdict(data).items() if value not in (None, False)},
        "rows": json_fingerprint(rows),
        "content": {name: files_fingerprint(value) for name, value in named.items()},
    }
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as when read back
    return parsed


def _read_json_object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise StorageError(f"{path} holds {type(found).__name__}, not an object; delete it, or choose another folder")
    return found


def _settings_error(path: Path, old: dict[str, Any], new: dict[str, Any]) -> ConfigError:
    differs = _first_difference(old, new)
    return ConfigError(f"{path} has other settings ({differs}); choose another folder or use --overwrite")


def _first_difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*old, *new] if old.get(key) != new.get(key))
        return _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    return f"{path} {json.dumps(old)} -> {json.dumps(new)}"


TEXTS_PER_SHARD, ROWS_PER_SHARD = 32, 64  # in a piece; part of the result, as texts of one piece share batches


@dataclass(frozen=True)
class CandidatesJob(ShardJob):
    """The candidates for the words of some texts: one JSON line a text, below one with the number of masks."""

    config: AugmentConfig
    texts: list[str]
    name: str = "texts"

    def load_worker(self) -> Callable[[int], str]:
        config = self.config
        network, tokenizer = load_masked_lm(config.lm)
        chooser = WordCandidateGenerator(
            network,
            tokenizer,
            neighbours=None if config.neighbours == "embeddings" else read_word_vectors(config.neighbours),
            stop_words=FUNCTION_WORDS if config.stop_words is None else read_stop_words(config.stop_words),
            num_candidates=config.candidates,
            max_tokens=config.context,
            precision=config.precision,
        )

        def make(number: int) -> str:
            found, masked = chooser.generate(self.texts[number * TEXTS_PER_SHARD : (number + 1) * TEXTS_PER_SHARD])
            lines = [[[choice.start, choice.end, choice.candidates] for choice in choices] for choices in found]
            return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [masked, *lines])

        return make


@dataclass(frozen=True)
class AugmentedRowsJob(ShardJob):
    """The copies of some rows as they stand in the file that is made, below a line with their number.

    A teacher's logits follow where one is named.
    """

    config: AugmentConfig
    data: DataConfig
    task: Task
    rows: list[Sequence[object]]
    texts: list[tuple[str, ...]]  # the one or two texts of each row
    text_ids: list[tuple[int, ...]]  # of these texts among all different ones
    text_columns: tuple[int, ...]  # of the text columns
    row_format: TableFormat
    work_dir: Path
    name: str = "rows"

    def load_worker(self) -> Callable[[int], str]:
        teacher = None if self.config.with_logits is None else self._load_teacher_logits(self.config.with_logits)
        read = functools.lru_cache(64)(lambda number: _read_candidates(self.work_dir / f"texts-{number:06d}"))
        count = self.config.augmented_per_example(len(self.rows))

        def make(piece: int) -> str:
            made: list[tuple[int, tuple[str, ...]]] = []
            for row in range(piece * ROWS_PER_SHARD, min((piece + 1) * ROWS_PER_SHARD, len(self.rows))):
                copies = sample_augmented_texts(
                    self.texts[row],
                    [read(number // TEXTS_PER_SHARD)[number % TEXTS_PER_SHARD] for number in self.text_ids[row]],
                    count=count,
                    probability=self.config.probability,
                    generator=np.random.default_rng([self.config.seed, row]),
                )
                made += [(row, copy) for copy in copies]
            logits = None if teacher is None or not made else teacher([copy for _, copy in made])
            lines = [
                self._format_row(row, copy, None if logits is None else logits[place])
                for place, (row, copy) in enumerate(made)
            ]
            return "".join([f"{len(lines)}\n", *lines])

        return make

    def _format_row(self, row: int, augmented: tuple[str, ...], logits: np.ndarray | None) -> str:
        cells = list(self.rows[row])
        for place, text in zip(self.text_columns, augmented, strict=True):
            cells[place] = text
        more = [] if logits is None else [" ".join(f"{value:.4f}" for value in logits)]
        return self.row_format.format_row([*cells, compute_source_id(self.texts[row]), *more])

    def _load_teacher_logits(self, path: str) -> Callable[[list[tuple[str, ...]]], np.ndarray]:
        """Answers with the logits ``(copies, outputs)``, in the order of the task's labels."""
        start = load_teacher(path, self.task)
        model = start.load_model(Space())
        length = min(self.data.max_length, start.max_length)
        order = [start.task.labels.index(name) for name in self.task.labels] or [0]

        def answer(copies: list[tuple[str, ...]]) -> np.ndarray:
            pairs = tuple(copy[1] for copy in copies) if len(copies[0]) > 1 else None
            examples = Examples(tuple(copy[0] for copy in copies), pairs, None)
            tokens = tokenize_texts(examples, start.tokenizer, max_length=length, use_cache=False)
            found = predict_subnet_logits(
                model, tokens, subnets={"full": model.full}, batch_size=64, precision=self.config.precision
            )
            return found["full"][:, order]

        return answer


def load_teacher(path: str, task: Task) -> TaskBaseCheckpoint:
    """A model that is fine-tuned on the task, stock or elastic.

    Raises:
        ConfigError: if it is not.
        CheckpointError: if it cannot be read.
    """
    start = load_base_checkpoint(TrainConfig(model=path, output="-"), task)
    if not start.is_finetuned:
        wanted = ", ".join(task.labels) or "one score"
        raise ConfigError(f"teacher {path} is not fine-tuned for this task; it must answer {wanted}")
    return start


def _read_candidates(path: Path) -> list[list[ReplaceableWord]]:
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]  # the first is the number of masks
    return [[ReplaceableWord(start, end, tuple(words)) for start, end, words in json.loads(line)] for line in lines]


ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AugmentationResult:
    """What was made.

    Attributes:
        path: the file of copies.
        rows: training rows.
        copies: rows in the file.
        masked: words that the language model was asked for.
        masks_per_minute: of the call that finished it; None where all words were there from earlier calls.
    """

    path: Path
    num_examples: int
    num_augmented: int
    num_masked_words: int
    masks_per_minute: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        counts = {"rows": self.num_examples, "copies": self.num_augmented, "masked_words": self.num_masked_words}
        return {"file": str(self.path), **counts, "masks_per_minute": self.masks_per_minute}


def augment(
    config: AugmentConfig,
    data: DataConfig,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: ProgressCallback = lambda what, done, total: None,
) -> AugmentationResult:
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
    if file_reader_for(requested_task_type(data)) is not None:
        raise ConfigError(
            f"task is {requested_task_type(data)}; copies are made for texts and pairs of texts with labels in a column"
        )
    training = read_train_table(data)
    training = replace(training, table=training.table.with_all_columns()[0])  # copies repeat whole rows
    rows = _labelled_rows(training, data)
    more = (SOURCE_ID_COLUMN,) if config.with_logits is None else (SOURCE_ID_COLUMN, LOGITS_COLUMN)
    layout = table_format_of(training.table, extra_columns=more, has_header=not training.columns.are_positions)
    settings = augmentation_settings(config, data, rows)
    place = AugmentationDirectory(config.output, suffix=layout.suffix, settings=settings, overwrite=overwrite)
    found = place.finished_record()
    if found is not None:
        return AugmentationResult(
            place.output_path, found["rows"], found["copies"], found["masked_words"], found["masks_per_minute"]
        )
    _check_inputs(config, training)
    first, second = _create_jobs(config, data, training, rows=rows, row_format=layout, work_dir=place.work_dir)
    place.create()
    masked, rate = _generate_candidates(first, place.work_dir, workers=workers, progress=progress)
    pieces = -(-len(rows) // ROWS_PER_SHARD)
    run_shards(
        second,
        place.work_dir,
        num_shards=pieces,
        workers=workers if config.with_logits is not None else 1,
        progress=functools.partial(progress, "writing copies"),
    )
    try:
        copies = _concatenate(
            place.output_path, layout, [second.shard_path(place.work_dir, number) for number in range(pieces)]
        )
    except DataError:
        place.discard()
        raise
    made = AugmentationResult(place.output_path, len(rows), copies, masked, rate)
    place.finish(made.to_dict() | {"versions": library_versions()})
    return made


def _labelled_rows(training: TrainTable, data: DataConfig) -> list[Sequence[object]]:
    """The rows that train, whole: those with text and a label of the task."""
    for name in {SOURCE_ID_COLUMN, LOGITS_COLUMN} & {*training.table.columns}:
        raise DataError(f"{training.table.name}: it has a column {name!r}; it is augmented already")
    parse_labels(
        training.raw_examples, training.label_parser, skip_bad_rows=data.skip_bad_rows
    )  # complains about a bad label
    lines = set()
    for line, label in zip(training.raw_examples.line_numbers, training.raw_examples.labels or (), strict=True):
        try:
            training.label_parser.parse(label)
        except ValueError:
            continue
        lines.add(line)
    return [row.cells for row in training.table.rows() if row.line_number in lines]


def _check_inputs(config: AugmentConfig, training: TrainTable) -> None:
    """Refuse what cannot be used before anything is written."""
    load_masked_lm(config.lm)
    if config.neighbours != "embeddings":
        read_word_vectors(config.neighbours, max_words=100)
    if config.stop_words is not None:
        read_stop_words(config.stop_words)
    if config.with_logits is not None:
        load_teacher(config.with_logits, training.task)


def _create_jobs(
    config: AugmentConfig,
    data: DataConfig,
    training: TrainTable,
    *,
    rows: list[Sequence[object]],
    row_format: TableFormat,
    work_dir: Path,
) -> tuple[CandidatesJob, AugmentedRowsJob]:
    names = (training.columns.text, training.columns.pair)
    places = tuple(training.table.columns.index(name) for name in names if name is not None)
    texts = [tuple(str(row[place]) for place in places) for row in rows]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for part in texts for text in part))}
    copies = AugmentedRowsJob(
        config,
        data,
        training.task,
        rows=rows,
        texts=texts,
        text_ids=[tuple(numbers[text] for text in part) for part in texts],
        text_columns=places,
        row_format=row_format,
        work_dir=work_dir,
    )
    return CandidatesJob(config, [*numbers]), copies


def _generate_candidates(
    job: CandidatesJob, work_dir: Path, *, workers: int, progress: ProgressCallback
) -> tuple[int, int | None]:
    """Ask for the candidates of all texts: how many words were masked, and how many a minute in this call."""
    count = -(-len(job.texts) // TEXTS_PER_SHARD)
    paths = [job.shard_path(work_dir, number) for number in range(count)]
    missing = [path for path in paths if not path.exists()]
    began = time.monotonic()
    run_shards(job, work_dir, num_shards=count, workers=workers, progress=functools.partial(progress, "choosing words"))
    minutes = (time.monotonic() - began) / 60
    masked = {path: _leading_count(path.read_bytes()) for path in paths}
    now = sum(masked[path] for path in missing)
    return sum(masked.values()), round(now / minutes) if now else None


def _concatenate(target: Path, row_format: TableFormat, shards: list[Path]) -> int:
    """The pieces one after the other in one file; how many rows they are."""
    copies = 0
    with atomic_file(target) as file:
        file.write(row_format.header())
        for piece in shards:
            content = piece.read_bytes()  # as text, a carriage return in a cell would become a line
            copies += _leading_count(content)
            file.write(content.partition(b"\n")[2].decode())
        if not copies:
            raise DataError("in no row a word was replaced; nothing was written")
    return copies


def _leading_count(content: bytes) -> int:
    return int(content.partition(b"\n")[0])
