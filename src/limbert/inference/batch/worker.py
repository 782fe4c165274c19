"""What a worker does with a shard: read, tokenise, answer, write, each once, with the model that it opened once."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from limbert.core.config import TaskKind
from limbert.data.readers import Examples, read_rows, without_labels
from limbert.data.task_registry import answers as plain_answers
from limbert.data.tasks import Columns, Task
from limbert.data.tokenize import tokenize
from limbert.errors import ConfigError, DataError, LimbertError
from limbert.inference.batch.packed import Packed, unpack
from limbert.inference.batch.reader import Part, Reader
from limbert.inference.batch.request import Request
from limbert.inference.batch.shards import Shard
from limbert.inference.batch.store import Store
from limbert.inference.engine import Engine
from limbert.inference.load import open_checkpoint
from limbert.inference.predict import policy_answers

MOST_ATTEMPTS = 5  # at one shard; then it is the shard that kills workers
ANSWER_COLUMNS: Mapping[TaskKind, tuple[str, ...]] = {
    "classification": ("label", "score"),
    "regression": ("score",),
    "multi-label": ("labels",),
}


def added_columns(task: Task) -> tuple[str, ...]:
    """The columns that answers bring.

    Raises:
        ConfigError: for tasks whose answers stand at tokens: they have no columns.
    """
    if task.kind not in ANSWER_COLUMNS:
        raise ConfigError(f"--engine ray answers {', '.join(ANSWER_COLUMNS)}; this model is for {task.kind}")
    return (*ANSWER_COLUMNS[task.kind], "layers", "flops")


@dataclass(frozen=True)
class Done:
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
    problem: str | None = None


@dataclass(frozen=True)
class Orders:
    """All that a worker must know beside the model.

    Attributes:
        request: how texts are answered.
        source: where the input's files are.
        columns: of the text and its pair.
        kept: columns that the output repeats.
        output: the folder for the answers.
        threads: that compute.
    """

    request: Request
    source: Store
    columns: Columns
    kept: tuple[str, ...]
    output: Store
    threads: int


class Worker:
    """Answers shards, one after the other. Ray makes one of these an actor.

    Args:
        packed: the model; called with nothing, so that it travels only to where it is needed.
        orders: the rest.
        begin: called with a shard's name before the work on it; returns how often that has happened.

    Raises:
        CheckpointError: if the model cannot be opened.
    """

    def __init__(self, packed: Callable[[], Packed], orders: Orders, begin: Callable[[str], int]) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if orders.threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(orders.threads)
        torch.set_num_threads(orders.threads)
        self._orders, self._begin = orders, begin
        self._opened = open_checkpoint(unpack(packed()))
        assert self._opened.task is not None
        self._task = self._opened.task
        self._engine = Engine(
            self._opened.model, orders.request.policy, kind=self._task.kind, precision=orders.request.precision
        )
        self._reader = Reader(orders.source, orders.columns, orders.kept)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Answer the shards of a batch, as Ray Data hands them over: one value a column and shard."""
        columns = {name: values.tolist() for name, values in batch.items()}
        shards = [Shard(*values) for values in zip(*(columns[name] for name in Shard.__annotations__), strict=True)]
        done = [asdict(self.answer(shard)) for shard in shards]
        return {name: [one[name] for one in done] for name in done[0]}

    def answer(self, shard: Shard) -> Done:
        """Read, answer and write one shard. An error on purpose becomes the ``problem``."""
        clock = _Clock()
        if self._begin(shard.name) > MOST_ATTEMPTS:
            return clock.done(
                shard,
                0,
                problem=f"{shard.path}: the worker died {MOST_ATTEMPTS} times on rows "
                f"{shard.start + 1} to {shard.start + shard.rows} (memory?); try fewer --shard-rows",
            )
        try:
            part = self._reader.read(shard)
            clock.lap("reading")
            bad_rows = self._answer(part, shard, clock)
        except LimbertError as error:
            return clock.done(shard, 0, problem=str(error))
        return clock.done(shard, bad_rows)

    def _answer(self, part: Part, shard: Shard, clock: "_Clock") -> int:
        places, examples = self._texts(part, shard)
        columns: dict[str, Any] = {name: [None] * shard.rows for name in added_columns(self._task)}
        clock.lap("reading")
        if places:
            tokens = tokenize(examples, self._opened.tokenizer, max_length=self._opened.max_length, cache=False)
            clock.lap("tokenising")
            found = policy_answers(
                self._engine,
                tokens,
                batch_size=self._orders.request.batch_size,
                device=self._opened.model.network.device,
            )
            answers = plain_answers(self._task, found.logits, tokens)
            clock.lap("computing")
            rows = zip(places, answers, found.layers_run.tolist(), found.flops.tolist(), strict=True)
            for place, answer, layers, flops in rows:
                for name, value in (answer | {"layers": layers, "flops": flops}).items():
                    columns[name][place] = value
        self._orders.output.write(shard.name, _parquet(part.kept, columns))
        clock.lap("writing")
        return shard.rows - len(places)

    def _texts(self, part: Part, shard: Shard) -> tuple[list[int], Examples]:
        """The places of the rows that have a text, and these texts."""
        columns, skip = self._orders.columns, self._orders.request.skip_bad_rows
        lines = {row.line: place for place, row in enumerate(part.texts.rows())} if skip else {}
        try:
            raw = read_rows(part.texts, Columns(columns.text, columns.pair, None), skip_bad_rows=skip)
        except DataError:
            if not skip:
                raise
            return [], Examples((), None, None)  # skipping, it raises only when nothing is left
        return ([lines[line] for line in raw.lines] if skip else [*range(shard.rows)]), without_labels(raw)


class _Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self._started = time.time()
        self._cpu = time.process_time()
        self._last = time.perf_counter()
        self._spent = dict.fromkeys(("reading", "tokenising", "computing", "writing"), 0.0)

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._spent[name] += now - self._last
        self._last = now

    def done(self, shard: Shard, bad_rows: int, *, problem: str | None = None) -> Done:
        rows, cpu = 0 if problem else shard.rows, time.process_time() - self._cpu
        return Done(
            shard.name, rows, bad_rows, os.getpid(), self._started, time.time(), cpu, **self._spent, problem=problem
        )


def _parquet(kept: Any, columns: dict[str, list[Any]]) -> Any:
    """A Parquet file, in memory: it is written in one go."""
    import pyarrow
    import pyarrow.parquet

    types = {"label": pyarrow.string(), "score": pyarrow.float64(), "layers": pyarrow.int32(), "flops": pyarrow.int64()}
    types["labels"] = pyarrow.list_(pyarrow.struct([("label", pyarrow.string()), ("score", pyarrow.float64())]))
    table = kept.replace_schema_metadata(None)
    for name, values in columns.items():
        table = table.append_column(name, pyarrow.array(values, types[name]))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()
