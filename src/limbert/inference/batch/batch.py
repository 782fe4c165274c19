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
from limbert.inference.batch.cluster import import_ray, worker_pool
from limbert.inference.batch.packed import PackedCheckpoint, inference_fingerprint, pack_checkpoint
from limbert.inference.batch.request import BatchPredictionConfig, job_settings, open_output, verify_output
from limbert.inference.batch.shards import Shard, ShardedInput
from limbert.inference.batch.store import StoragePath
from limbert.inference.batch.worker import ShardResult, ShardWorker, WorkerConfig
from limbert.inference.load import LoadedCheckpoint


@dataclass(frozen=True)
class BatchPredictionResult:
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
    shard_results: tuple[ShardResult, ...]


def predict_files(
    checkpoint: str,
    opened: LoadedCheckpoint,
    inputs: ShardedInput,
    output: str,
    *,
    config: BatchPredictionConfig,
    workers: int | None = None,
    threads: int | None = None,
    progress: Callable[[ShardResult | None, int, int], None] = lambda done, rows, total: None,
) -> BatchPredictionResult:
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
        opened.task.check_inputs(has_pairs=inputs.columns.pair is not None)
    ray = import_ray()
    packed, store = pack_checkpoint(checkpoint), StoragePath.from_uri(output)
    asked = job_settings(
        config, inputs, checkpoint_fingerprint=inference_fingerprint(packed), max_length=opened.max_length
    )
    there = open_output(store, asked)
    store.remove_stale_files()
    todo = [shard for shard in inputs.shards if shard.name not in there]
    resumed = len(inputs.shards) - len(todo)
    rows = inputs.rows - sum(shard.rows for shard in todo)
    progress(None, rows, inputs.rows)
    done: list[ShardResult] = []
    size = sum(content.nbytes for content in packed.files.values())
    if not todo:
        return BatchPredictionResult(rows, len(inputs.shards), resumed, 0, 0, 0, ())
    with worker_pool(workers, threads, model_bytes=size) as sized:
        verify_output(store, asked)
        orders = WorkerConfig(config, inputs.storage, inputs.columns, inputs.kept_columns, store, sized.threads)
        reference = ray.put(packed)
        for one in _predict_shards(
            todo, _CheckpointReference(reference), orders, workers=min(sized.workers, len(todo))
        ):
            if one.error is not None:
                raise DataError(one.error)
            done.append(one)
            rows += one.rows
            progress(one, rows, inputs.rows)
    missing = {shard.name for shard in inputs.shards} - store.file_names()
    if missing:
        raise StorageError(
            f"{output}: {len(missing)} shards are missing, such as {min(missing)}; run the command again"
        )
    bad_rows = sum(one.bad_rows for one in done)
    return BatchPredictionResult(rows, len(inputs.shards), resumed, bad_rows, sized.workers, sized.threads, tuple(done))


@dataclass(frozen=True)
class _CheckpointReference:
    """The model in Ray's object store; calling it brings it to this machine."""

    reference: Any

    def __call__(self) -> PackedCheckpoint:
        packed: PackedCheckpoint = import_ray().get(self.reference)
        return packed


@dataclass(frozen=True)
class _AttemptCounter:
    """Counts how often each shard was begun, in a process that no shard can kill: Ray Data retries without end."""

    actor: Any

    @classmethod
    def start(cls) -> "_AttemptCounter":
        return cls(import_ray().remote(num_cpus=0, max_restarts=-1)(_AttemptCounterActor).remote())

    def __call__(self, name: str) -> int:
        times: int = import_ray().get(self.actor.increment.remote(name))
        return times


class _AttemptCounterActor:
    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def increment(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name]


def _predict_shards(
    shards: list[Shard], fetch_checkpoint: _CheckpointReference, config: WorkerConfig, *, workers: int
) -> Iterator[ShardResult]:
    """The shards as they are finished, in any order. Ray Data starts dead workers again and repeats their shards."""
    import ray.data
    from ray.exceptions import RayError

    with _silence_ray_data():
        described = ray.data.from_items([shard.to_dict() for shard in shards], override_num_blocks=len(shards))
        answered = described.map_batches(
            ShardWorker,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            fn_constructor_kwargs={
                "fetch_checkpoint": fetch_checkpoint,
                "config": config,
                "count_attempt": _AttemptCounter.start(),
            },
            num_cpus=config.threads,
        )
        try:
            for row in answered.iter_rows():
                yield ShardResult(**row)
        except RayError as error:
            raise StorageError(f"a worker failed: {_last_line(error)}; finished shards stay") from error


@contextmanager
def _silence_ray_data() -> Iterator[None]:
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
