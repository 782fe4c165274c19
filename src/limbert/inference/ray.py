"""Batch prediction for files with Ray, one output file a shard; and the Ray session that serving shares."""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbert.core.config import RuntimeConfig, RuntimePrecision, TaskType, require
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.token_cache import default_cache_dir
from limbert.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LimbertError,
    StorageError,
    first_line,
    import_optional,
)
from limbert.inference.compiled import open_policy
from limbert.inference.load import LoadedCheckpoint, load_checkpoint
from limbert.inference.policy import Policy
from limbert.inference.predict import predict
from limbert.inference.runtimes import Runtime, check_runtime
from limbert.inference.shards import Shard, ShardedInput, ShardReader
from limbert.inference.storage import Storage, check_settings, open_output
from limbert.model.checkpoint import RECORD_FILENAME, find_file

ADDRESS_VARIABLE = "RAY_ADDRESS"
FORMAT_VERSION = 1  # of the settings file
MAX_ATTEMPTS = 5  # at a shard before it is blamed for the death of its workers
PREDICTION_COLUMNS: Mapping[TaskType, tuple[str, ...]] = {
    "classification": ("label", "score"),
    "regression": ("score",),
    "multi-label": ("labels",),
}
_OBJECT_STORE_BYTES = 256 * 2**20  # beyond two copies of the model; only descriptions of shards go through it
_CHECKPOINT_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}


@contextmanager
def ray_session(*, cpus: int, model_bytes: int = 0) -> Iterator[Any]:
    """Use the Ray of this process, connect to the cluster at ``RAY_ADDRESS``, or start a local Ray and end it again.

    A local Ray offers ``cpus`` CPUs whatever the machine has, and room for two copies of the model; it has no dashboard
    and sends no usage statistics. Yields the module ``ray``.
    """
    ray = import_optional("ray", extra="scale")
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get(ADDRESS_VARIABLE)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        room = _OBJECT_STORE_BYTES + 2 * model_bytes
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False, "object_store_memory": room}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"no Ray at {address or 'this machine'}: {first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def pack_checkpoint(checkpoint: str | Path) -> dict[str, np.ndarray]:
    """The bytes of a checkpoint's files by name, as arrays that Ray shares between processes without copies."""
    config = find_file(checkpoint, "config.json")
    if config is None:
        raise CheckpointError(f"{checkpoint} is not a model checkpoint: it has no config.json")
    try:
        paths = sorted(path for path in config.parent.iterdir() if path.suffix in _CHECKPOINT_SUFFIXES)
        return {path.name: np.fromfile(path, dtype=np.uint8) for path in paths if path.is_file()}
    except OSError as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error.strerror or error}") from error


def unpack_checkpoint(files: Mapping[str, np.ndarray]) -> Path:
    """Write the files into a folder of Limbert's cache, except those that are there already.

    Each file is replaced on its own, so that workers that unpack at the same time do not disturb each other.
    """
    try:
        folder = default_cache_dir() / "checkpoints" / _fingerprint(files)
    except RuntimeError:
        raise StorageError("no folder for the model's files; set LIMBERT_CACHE to one") from None
    storage = Storage.from_uri(str(folder))
    storage.remove_stale_files()
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or not np.array_equal(np.fromfile(path, dtype=np.uint8), content):
            storage.write(name, content)
    return folder


def _fingerprint(files: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class BatchPredictionConfig:
    """How batch prediction computes."""

    policy: Policy
    precision: RuntimePrecision = "fp32"
    batch_size: int = 64  # examples; predictions do not depend on it
    skip_bad_rows: bool = False  # give rows without a text an empty prediction instead of stopping at the first
    runtime: str = "torch"
    max_drop: float = 1.0  # points of the metric that bf16 and int8 may lose

    def __post_init__(self) -> None:
        check_runtime(self.runtime, self.precision)

    @property
    def runtime_config(self) -> RuntimeConfig:
        """What computes the policy's sub-network."""
        return RuntimeConfig(self.runtime, self.precision, self.max_drop)


@dataclass(frozen=True)
class ShardResult:
    """One shard, finished or failed."""

    name: str  # of the output file
    rows: int
    bad_rows: int  # rows without a text and so with an empty prediction
    pid: int  # of the worker
    started: float  # seconds since 1970
    ended: float
    error: str | None  # why there is no output file


@dataclass(frozen=True)
class BatchPredictionResult:
    """What one call of `predict_files` did."""

    rows: int  # of the whole output
    shards: int  # of the whole output
    resumed: int  # shards that an earlier call had written
    bad_rows: int  # rows with an empty prediction that this call wrote
    workers: int  # 0 if there was nothing to do
    threads: int  # of each worker
    shard_results: tuple[ShardResult, ...]  # of the shards that this call wrote, in the order of finishing


def prediction_columns(task: Task) -> tuple[str, ...]:
    """The columns that predictions add to the output."""
    if task.task_type not in PREDICTION_COLUMNS:
        raise ConfigError(f"--engine ray predicts {', '.join(PREDICTION_COLUMNS)}; this model is for {task.task_type}")
    return (*PREDICTION_COLUMNS[task.task_type], "layers", "flops")


def predict_files(
    checkpoint: str,
    opened: LoadedCheckpoint,
    inputs: ShardedInput,
    output: str,
    *,
    config: BatchPredictionConfig,
    workers: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BatchPredictionResult:
    """Predict all rows of the input whose shard is not in the output yet; finished shards stay after an error.

    By default there is a worker for every ``threads`` cores, and ``threads`` divides this machine's cores among the
    workers; on a cluster it is 1. ``progress`` is called with the rows predicted so far and all rows.
    """
    require(workers is None or workers > 0, "workers", workers, "at least 1")
    require(threads is None or threads > 0, "threads", threads, "at least 1")
    assert opened.task is not None
    opened.task.check_inputs(has_pairs=inputs.columns.pair is not None)
    import_optional("ray", extra="scale")
    files, storage = pack_checkpoint(checkpoint), Storage.from_uri(output)
    settings = _job_settings(config, inputs, files, max_length=opened.max_length)
    finished = open_output(storage, settings)
    todo = [shard for shard in inputs.shards if shard.name not in finished]
    rows = inputs.rows - sum(shard.rows for shard in todo)
    resumed = len(inputs.shards) - len(todo)
    progress(rows, inputs.rows)
    if not todo:
        return BatchPredictionResult(rows, len(inputs.shards), resumed, 0, 0, 0, ())
    results: list[ShardResult] = []
    cores, on_cluster = os.cpu_count() or 1, bool(os.environ.get(ADDRESS_VARIABLE))
    threads = threads or (1 if on_cluster or workers is None else max(1, cores // workers))
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else every pool of workers prints a warning
    model_bytes = sum(content.nbytes for content in files.values())
    with ray_session(cpus=(workers or max(1, cores // threads)) * threads, model_bytes=model_bytes) as ray:
        workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        check_settings(storage, settings)  # another driver may have started at the same moment
        job = {"inputs": replace(inputs, files={}, shards=()), "output": storage, "config": config, "threads": threads}
        for result in _run_workers(todo, files, job, workers=min(workers, len(todo))):
            if result.error is not None:
                raise DataError(result.error)
            results.append(result)
            rows += result.rows
            progress(rows, inputs.rows)
    missing = {shard.name for shard in inputs.shards} - storage.file_names()
    if missing:
        raise StorageError(f"{output}: {len(missing)} shards such as {min(missing)} are missing; run the command again")
    bad_rows = sum(result.bad_rows for result in results)
    return BatchPredictionResult(rows, len(inputs.shards), resumed, bad_rows, workers, threads, tuple(results))


def _job_settings(
    config: BatchPredictionConfig, inputs: ShardedInput, files: Mapping[str, np.ndarray], *, max_length: int
) -> dict[str, Any]:
    """Everything that decides the predictions and their split into files, as JSON values."""
    # Other verbs add to limbert.json; what predictions take from it, the policy, is compared by itself.
    weights = {name: content for name, content in files.items() if name != RECORD_FILENAME}
    values = {
        "format": FORMAT_VERSION,
        "checkpoint": _fingerprint(weights),
        "policy": config.policy.to_dict(),
        "precision": config.precision,
        "max_length": max_length,
        "skip_bad_rows": config.skip_bad_rows,
        "text_column": inputs.columns.text,
        "pair_column": inputs.columns.pair,
        "kept": inputs.kept_columns,
        "rows": inputs.rows,
        "shards": len(inputs.shards),
        "shard_rows": max(shard.rows for shard in inputs.shards),
        "cut": hashlib.blake2b(repr(inputs.shards).encode(), digest_size=8).hexdigest(),
        "sources": inputs.files,
    }
    if config.runtime != "torch":  # absent in the output folders of earlier versions
        values["runtime"] = config.runtime
    return dict(json.loads(json.dumps(values)))


class _AttemptCounter:
    """Counts attempts at each shard, in a process that no shard can kill: Ray Data repeats them without limit."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def increment(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name]


def _run_workers(
    shards: list[Shard], files: Mapping[str, np.ndarray], job: Mapping[str, Any], *, workers: int
) -> Iterator[ShardResult]:
    """Shards as they are finished, in any order. Ray Data restarts dead workers and repeats their shards."""
    import ray
    import ray.data
    from ray.exceptions import RayError

    reference = ray.put(dict(files))
    make_counter: Any = ray.remote(num_cpus=0, max_restarts=-1)(_AttemptCounter)
    counter = make_counter.remote()
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False  # the caller shows progress
    logger.setLevel(logging.ERROR)
    try:
        described = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards))
        predicted = described.map_batches(
            ShardWorker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            fn_constructor_kwargs={
                "fetch_files": lambda: ray.get(reference),
                "count_attempt": lambda name: ray.get(counter.increment.remote(name)),
                **job,
            },
            num_cpus=job["threads"],
        )
        for row in predicted.iter_rows():
            yield ShardResult(**row)
    except RayError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()  # after the remote traceback
        raise StorageError(f"a worker failed: {reason}; finished shards stay") from error
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


class ShardWorker:
    """Reads, predicts and writes shards with a model that it loads once; Ray runs each worker as an actor.

    ``fetch_files`` returns the packed checkpoint. ``count_attempt`` is called with a shard's name before each attempt,
    and returns the number of attempts so far. ``files`` and ``shards`` of the inputs are not used.
    """

    def __init__(
        self,
        fetch_files: Callable[[], Mapping[str, np.ndarray]],
        count_attempt: Callable[[str], int],
        inputs: ShardedInput,
        output: Storage,
        config: BatchPredictionConfig,
        threads: int,
    ) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self._output, self._config, self._count_attempt, self._threads = output, config, count_attempt, threads
        self._opened = load_checkpoint(unpack_checkpoint(fetch_files()))
        self._reader = ShardReader(inputs, skip_bad_rows=config.skip_bad_rows)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Predict a batch of one shard, given and returned as Ray Data does: an array a field."""
        shard = Shard(**{name: values.tolist()[0] for name, values in batch.items()})
        return {name: [value] for name, value in asdict(self.predict(shard)).items()}

    def predict(self, shard: Shard) -> ShardResult:
        """Read, predict and write one shard; the message of an expected error becomes the result's ``error``."""
        started, rows, bad_rows, error = time.time(), 0, 0, None
        try:
            if self._count_attempt(shard.name) > MAX_ATTEMPTS:
                raise DataError(
                    f"{shard.path}: the worker died {MAX_ATTEMPTS} times on rows {shard.start + 1} to "
                    f"{shard.start + shard.rows} (out of memory?); try fewer --shard-rows"
                )
            kept, indices, examples = self._reader.read(shard)
            assert self._opened.task is not None
            columns = prediction_columns(self._opened.task)
            self._output.write(shard.name, to_parquet(kept, indices, self._predict(examples), columns))
            rows, bad_rows = shard.rows, shard.rows - len(indices)
        except LimbertError as raised:
            error = str(raised)
        return ShardResult(shard.name, rows, bad_rows, os.getpid(), started, time.time(), error)

    @cached_property
    def _runtime(self) -> Runtime | None:
        config = self._config
        return open_policy(self._opened, config.policy, config.runtime_config, threads=self._threads)

    def _predict(self, examples: Examples) -> list[dict[str, Any]]:
        if not examples.texts:
            return []
        assert self._opened.task is not None
        predictions = predict(
            self._opened.model,
            self._opened.tokenize(examples, cache=False),
            task=self._opened.task,
            policy=self._config.policy,
            batch_size=self._config.batch_size,
            precision=self._config.precision,
            runtime=self._runtime,
        )
        return [prediction.to_dict() | prediction.cost_to_dict() for prediction in predictions]


def to_parquet(kept: Any, indices: list[int], predictions: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    """An Arrow buffer with a Parquet file: the kept columns, and the predictions at these rows (null elsewhere)."""
    import pyarrow
    import pyarrow.parquet

    types = {"label": pyarrow.string(), "score": pyarrow.float64(), "layers": pyarrow.int32(), "flops": pyarrow.int64()}
    types["labels"] = pyarrow.list_(pyarrow.struct([("label", pyarrow.string()), ("score", pyarrow.float64())]))
    by_row = dict(zip(indices, predictions, strict=True))
    rows = [by_row.get(index, {}) for index in range(kept.num_rows)]
    table = kept.replace_schema_metadata(None)
    for name in columns:
        table = table.append_column(name, pyarrow.array([row.get(name) for row in rows], types[name]))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()
