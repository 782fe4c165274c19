"""Answer files of texts on a Ray cluster: every row once, in shards that are there whole or not at all.

Ray Data streams the descriptions of the shards that are still to do through a pool of workers. Which rows are done is
decided by nothing but the files in the output folder, so that it does not matter who was killed, or when.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from limbert.errors import DataError, StorageError
from limbert.inference.batch.cluster import cluster, need_ray
from limbert.inference.batch.packed import Packed, answering_digest, pack
from limbert.inference.batch.request import Request, begin, confirm, identity
from limbert.inference.batch.shards import Input, Shard
from limbert.inference.batch.store import Store
from limbert.inference.batch.worker import Done, Orders, Worker
from limbert.inference.load import Opened


@dataclass(frozen=True)
class Answered:
    """What a call did.

    Attributes:
        rows: of the whole output.
        shards: files of the whole output.
        resumed: of them, those that were there before.
        bad_rows: rows with an empty answer, of those written now.
        workers: that ran.
        threads: of each.
        done: the shards written now, in the order they were finished.
    """

    rows: int
    shards: int
    resumed: int
    bad_rows: int
    workers: int
    threads: int
    done: tuple[Done, ...]


def predict_files(
    run: str,
    opened: Opened,
    found: Input,
    output: str,
    *,
    request: Request,
    workers: int | None = None,
    threads: int | None = None,
    progress: Callable[[Done | None, int, int], None] = lambda done, rows, total: None,
) -> Answered:
    """Answer all rows of the input that have no answer yet.

    Args:
        run: the checkpoint that was opened.
        opened: it, for what the workers should find.
        found: the input.
        output: folder for the answers, local or a URI; one that was begun goes on.
        request: how texts are answered; resolved against the model before.
        workers: see `cluster`.
        threads: see `cluster`.
        progress: called at the start and after each shard with the rows that are done and those in all.

    Raises:
        ConfigError: no Ray, or the output holds something else.
        DataError: a row or a file that cannot be used, or texts without pairs where the training had them; finished
            shards stay.
        StorageError: the output cannot be written, or a shard killed its worker again and again.
    """
    if opened.task is not None:
        opened.task.check_inputs(pairs=found.columns.pair is not None)
    ray = need_ray()
    packed, store = pack(run), Store.at(output)
    asked = identity(request, found, checkpoint=answering_digest(packed), max_length=opened.max_length)
    there = begin(store, asked)
    store.sweep()
    todo = [shard for shard in found.shards if shard.name not in there]
    resumed = len(found.shards) - len(todo)
    rows = found.rows - sum(shard.rows for shard in todo)
    progress(None, rows, found.rows)
    done: list[Done] = []
    size = sum(content.nbytes for content in packed.files.values())
    if not todo:
        return Answered(rows, len(found.shards), resumed, 0, 0, 0, ())
    with cluster(workers, threads, model_bytes=size) as sized:
        confirm(store, asked)
        orders = Orders(request, found.store, found.columns, found.kept, store, sized.threads)
        reference = ray.put(packed)
        for one in _stream(todo, _Fetched(reference), orders, workers=min(sized.workers, len(todo))):
            if one.problem is not None:
                raise DataError(one.problem)
            done.append(one)
            rows += one.rows
            progress(one, rows, found.rows)
    missing = {shard.name for shard in found.shards} - store.names()
    if missing:
        raise StorageError(
            f"{output}: {len(missing)} shards are missing, such as {min(missing)}; run the command again"
        )
    bad_rows = sum(one.bad_rows for one in done)
    return Answered(rows, len(found.shards), resumed, bad_rows, sized.workers, sized.threads, tuple(done))


@dataclass(frozen=True)
class _Fetched:
    """The model in Ray's object store; calling it brings it to this machine."""

    reference: Any

    def __call__(self) -> Packed:
        packed: Packed = need_ray().get(self.reference)
        return packed


@dataclass(frozen=True)
class _Counter:
    """Counts how often each shard was begun, in a process that no shard can kill: Ray Data retries without end."""

    actor: Any

    @classmethod
    def start(cls) -> "_Counter":
        return cls(need_ray().remote(num_cpus=0, max_restarts=-1)(_Begun).remote())

    def __call__(self, name: str) -> int:
        times: int = need_ray().get(self.actor.begin.remote(name))
        return times


class _Begun:
    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        self._times[name] += 1
        return self._times[name]


def _stream(todo: list[Shard], packed: _Fetched, orders: Orders, *, workers: int) -> Iterator[Done]:
    """The shards as they are finished, in any order. Ray Data starts dead workers again and repeats their shards."""
    import ray.data
    from ray.exceptions import RayError

    with _quiet_ray_data():
        described = ray.data.from_items([shard.to_dict() for shard in todo], override_num_blocks=len(todo))
        answered = described.map_batches(
            Worker,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            fn_constructor_kwargs={"packed": packed, "orders": orders, "begin": _Counter.start()},
            num_cpus=orders.threads,
        )
        try:
            for row in answered.iter_rows():
                yield Done(**row)
        except RayError as error:
            raise StorageError(f"a worker failed: {_last_line(error)}; finished shards stay") from error


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data's own bars and notes stay out of the terminal: the caller shows progress."""
    import ray.data

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


def _last_line(error: Exception) -> str:
    """What went wrong stands at the end of Ray's message, after the remote traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
