"""What a worker does with a shard: read, tokenise, answer, write, each once, with the model that it opened once."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from limbert.core.config import TaskType
from limbert.data.readers import Examples, read_raw_examples, unlabelled_examples
from limbert.data.task_registry import decode_predictions as plain_answers
from limbert.data.tasks import Columns, Task
from limbert.data.tokenize import tokenize_texts
from limbert.errors import ConfigError, DataError, LimbertError
from limbert.inference.batch.packed import PackedCheckpoint, unpack_checkpoint
from limbert.inference.batch.reader import ShardData, ShardReader
from limbert.inference.batch.request import BatchPredictionConfig
from limbert.inference.batch.shards import Shard
from limbert.inference.batch.store import StoragePath
from limbert.inference.engine import Engine
from limbert.inference.load import load_checkpoint
from limbert.inference.predict import run_policy

MAX_ATTEMPTS = 5  # at one shard; then it is the shard that kills workers
PREDICTION_COLUMNS: Mapping[TaskType, tuple[str, ...]] = {
    "classification": ("label", "score"),
    "regression": ("score",),
    "multi-label": ("labels",),
}


def prediction_columns(task: Task) -> tuple[str, ...]:
    """The columns that answers bring.

    Raises:
        ConfigError: for tasks whose answers stand at tokens: they have no columns.
    """
    if task.task_type not in PREDICTION_COLUMNS:
        raise ConfigError(f"--engine ray answers {', '.join(PREDICTION_COLUMNS)}; this model is for {task.task_type}")
    return (*PREDICTION_COLUMNS[task.task_type], "layers", "flops")


@dataclass(frozen=True)
class ShardResult:
    """What became of one shard.

    Attributes:
        name: of the file with the answers.
        rows: that it holds.
        bad_rows: of them, those without a text and so with an empty answer.
        pid: the process that wrote it.
        started, ended: seconds since 1970.
        cpu: seconds of processor time.
        reading, tokenising, computing, writing: seconds that it took.
        problem: why there is no file; the first worker with one ends the whole.
    """

    name: str
    rows: int
    bad_rows: int
    pid: int
    started: float
    ended: float
    cpu: float
    reading: float
    tokenising: float
    computing: float
    writing: float
    error: str | None = None


@dataclass(frozen=True)
class WorkerConfig:
    """All that a worker must know beside the model.

    Attributes:
        request: how texts are answered.
        source: where the input's files are.
        columns: of the text and its pair.
        kept: columns that the output repeats.
        output: the folder for the answers.
        threads: that compute.
    """

    config: BatchPredictionConfig
    input_storage: StoragePath
    columns: Columns
    kept_columns: tuple[str, ...]
    output_storage: StoragePath
    threads: int


class ShardWorker:
    """Answers shards, one after the other. Ray makes one of these an actor.

    Args:
        packed: the model; called with nothing, so that it travels only to where it is needed.
        orders: the rest.
        begin: called with a shard's name before the work on it; returns how often that has happened.

    Raises:
        CheckpointError: if the model cannot be opened.
    """

    def __init__(
        self,
        fetch_checkpoint: Callable[[], PackedCheckpoint],
        config: WorkerConfig,
        count_attempt: Callable[[str], int],
    ) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if config.threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(config.threads)
        torch.set_num_threads(config.threads)
        self._config, self._count_attempt = config, count_attempt
        self._opened = load_checkpoint(unpack_checkpoint(fetch_checkpoint()))
        assert self._opened.task is not None
        self._task = self._opened.task
        self._engine = Engine(
            self._opened.model, config.config.policy, task_type=self._task.task_type, precision=config.config.precision
        )
        self._reader = ShardReader(config.input_storage, config.columns, config.kept_columns)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Answer the shards of a batch, as Ray Data hands them over: one value a column and shard."""
        columns = {name: values.tolist() for name, values in batch.items()}
        shards = [Shard(*values) for values in zip(*(columns[name] for name in Shard.__annotations__), strict=True)]
        done = [asdict(self.predict(shard)) for shard in shards]
        return {name: [one[name] for one in done] for name in done[0]}

    def predict(self, shard: Shard) -> ShardResult:
        """Read, answer and write one shard. An error on purpose becomes the ``problem``."""
        clock = _StageTimer()
        if self._count_attempt(shard.name) > MAX_ATTEMPTS:
            return clock.result(
                shard,
                0,
                error=f"{shard.path}: the worker died {MAX_ATTEMPTS} times on rows "
                f"{shard.start + 1} to {shard.start + shard.rows} (memory?); try fewer --shard-rows",
            )
        try:
            part = self._reader.read(shard)
            clock.record("reading")
            bad_rows = self._predict(part, shard, clock)
        except LimbertError as error:
            return clock.result(shard, 0, error=str(error))
        return clock.result(shard, bad_rows)

    def _predict(self, data: ShardData, shard: Shard, timer: "_StageTimer") -> int:
        places, examples = self._read_examples(data, shard)
        columns: dict[str, Any] = {name: [None] * shard.rows for name in prediction_columns(self._task)}
        timer.record("reading")
        if places:
            tokens = tokenize_texts(
                examples, self._opened.tokenizer, max_length=self._opened.max_length, use_cache=False
            )
            timer.record("tokenising")
            found = run_policy(
                self._engine,
                tokens,
                batch_size=self._config.config.batch_size,
                device=self._opened.model.network.device,
            )
            answers = plain_answers(self._task, found.logits, tokens)
            timer.record("computing")
            rows = zip(places, answers, found.layers_run.tolist(), found.flops.tolist(), strict=True)
            for place, answer, layers, flops in rows:
                for name, value in (answer | {"layers": layers, "flops": flops}).items():
                    columns[name][place] = value
        self._config.output_storage.write(shard.name, _to_parquet(data.kept_columns, columns))
        timer.record("writing")
        return shard.rows - len(places)

    def _read_examples(self, data: ShardData, shard: Shard) -> tuple[list[int], Examples]:
        """The places of the rows that have a text, and these texts."""
        columns, skip = self._config.columns, self._config.config.skip_bad_rows
        lines = {row.line_number: place for place, row in enumerate(data.texts.rows())} if skip else {}
        try:
            raw = read_raw_examples(data.texts, Columns(columns.text, columns.pair, None), skip_bad_rows=skip)
        except DataError:
            if not skip:
                raise
            return [], Examples((), None, None)  # skipping, it raises only when nothing is left
        return ([lines[line] for line in raw.line_numbers] if skip else [*range(shard.rows)]), unlabelled_examples(raw)


class _StageTimer:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self._started = time.time()
        self._cpu = time.process_time()
        self._last = time.perf_counter()
        self._seconds = dict.fromkeys(("reading", "tokenising", "computing", "writing"), 0.0)

    def record(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] += now - self._last
        self._last = now

    def result(self, shard: Shard, bad_rows: int, *, error: str | None = None) -> ShardResult:
        rows, cpu = 0 if error else shard.rows, time.process_time() - self._cpu
        return ShardResult(
            shard.name, rows, bad_rows, os.getpid(), self._started, time.time(), cpu, **self._seconds, error=error
        )


def _to_parquet(kept_columns: Any, columns: dict[str, list[Any]]) -> Any:
    """A Parquet file, in memory: it is written in one go."""
    import pyarrow
    import pyarrow.parquet

    types = {"label": pyarrow.string(), "score": pyarrow.float64(), "layers": pyarrow.int32(), "flops": pyarrow.int64()}
    types["labels"] = pyarrow.list_(pyarrow.struct([("label", pyarrow.string()), ("score", pyarrow.float64())]))
    table = kept_columns.replace_schema_metadata(None)
    for name, values in columns.items():
        table = table.append_column(name, pyarrow.array(values, types[name]))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()
