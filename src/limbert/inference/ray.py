"""Batch prediction for files with Ray, one output file a shard; and the Ray session that serving shares."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from limbert.core.config import require
from limbert.data.tasks import Task
from limbert.data.tokenize import default_cache_dir
from limbert.errors import ConfigError, DataError, LimbertError, StorageError, first_line, import_optional
from limbert.inference.pipeline import Pipeline, pipeline
from limbert.inference.shards import Shard, ShardedInput, ShardReader, shard_input
from limbert.inference.storage import Storage, open_output
from limbert.method.calibration import TEMPERATURES_KEY
from limbert.model.checkpoint import RECORD_FILENAME, find_file

ADDRESS_VARIABLE = "RAY_ADDRESS"
FORMAT_VERSION = 2  # of the settings file
MAX_ATTEMPTS = 5  # at a shard before it is blamed for the death of its workers
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
    address, options = os.environ.get(ADDRESS_VARIABLE), dict[str, Any]()
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        room = _OBJECT_STORE_BYTES + 2 * model_bytes
        options = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "object_store_memory": room}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"no Ray at {address or 'this machine'}: {first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def pack_checkpoint(checkpoint: str | Path) -> dict[str, bytes]:
    """The content of a checkpoint's files by name, for Ray's object store."""
    config = find_file(checkpoint, "config.json")
    assert config is not None  # the model was loaded
    paths = sorted(path for path in config.parent.iterdir() if path.suffix in _CHECKPOINT_SUFFIXES)
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def unpack_checkpoint(files: Mapping[str, bytes]) -> Path:
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
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            storage.write(name, content)
    return folder


def _fingerprint(files: Mapping[str, bytes]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class BatchPredictionResult:
    """What one call of `predict_files` did."""

    rows: int  # of the whole output
    shards: int  # of the whole output
    resumed: int  # shards that an earlier call had written
    bad_rows: int  # rows with an empty prediction that this call wrote
    workers: int  # 0 if there was nothing to do
    threads: int  # of each worker


def prediction_schema(task: Task) -> pyarrow.Schema:
    """The columns that predictions add to the output."""
    label, score = ("label", pyarrow.string()), ("score", pyarrow.float64())
    labels = ("labels", pyarrow.list_(pyarrow.struct([label, score])))
    columns = {"classification": [label, score], "regression": [score], "multi-label": [labels]}
    if task.task_type not in columns:
        raise ConfigError(f"--engine ray predicts {', '.join(columns)}; this model is for {task.task_type}")
    return pyarrow.schema([*columns[task.task_type], ("layers", pyarrow.int32()), ("flops", pyarrow.int64())])


def predict_files(
    pipe: Pipeline,
    input: str,
    output: str,
    *,
    keep_columns: Sequence[str] | None = None,
    skip_bad_rows: bool = False,
    shard_rows: int = 5_000,
    workers: int | None = None,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> BatchPredictionResult:
    """Predict the rows of all shards that are not in the output yet; finished shards stay after an error.

    Args:
        pipe: the model, and what computes the predictions.
        input: file, folder or pattern, or the URI of one; read with the data settings of the pipeline's checkpoint.
        output: folder, or its URI.
        keep_columns: input columns that the output repeats; None: all.
        skip_bad_rows: give rows without a text an empty prediction instead of stopping at the first.
        shard_rows: most rows in an output file.
        workers: default: one for every ``threads`` cores.
        threads: of each worker; default: this machine's cores are divided among the workers; on a cluster 1.
        progress: called with the step, and its files or rows done and in all.

    Raises:
        LimbertError: for input that cannot be read, an output of other settings, or a shard that workers die on.
    """
    for name, count in {"workers": workers, "threads": threads}.items():
        require(count is None or count > 0, name, count, "at least 1")
    inputs = shard_input(
        input,
        pipe.checkpoint.data_config,
        keep_columns=keep_columns,
        prediction_columns=prediction_schema(pipe.task).names,
        max_shard_rows=shard_rows,
        progress=lambda done, total: progress("reading files", done, total),
    )
    pipe.task.check_inputs(has_pairs=inputs.columns.pair is not None)
    files, storage = pack_checkpoint(pipe.checkpoint.path), Storage.from_uri(output)
    settings = _job_settings(pipe, inputs, files) | {"shard_rows": shard_rows}
    finished = open_output(storage, settings)
    todo = [shard for shard in inputs.shards if shard.name not in finished]
    rows, resumed = inputs.rows - sum(shard.rows for shard in todo), len(inputs.shards) - len(todo)
    progress("predicting rows", rows, inputs.rows)
    if not todo:
        return BatchPredictionResult(rows, len(inputs.shards), resumed, 0, 0, 0)
    bad_rows, cores, on_cluster = 0, os.cpu_count() or 1, bool(os.environ.get(ADDRESS_VARIABLE))
    threads = threads or (1 if on_cluster or workers is None else max(1, cores // workers))
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else a warning that arguments must outlive restarts
    cpus, model_bytes = (workers or max(1, cores // threads)) * threads, sum(map(len, files.values()))
    with ray_session(cpus=cpus, model_bytes=model_bytes) as ray:
        workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        open_output(storage, settings)  # refused if another driver started at the same moment
        job = {
            "pipeline_options": {"policy": pipe.policy, "batch_size": pipe.batch_size} | vars(pipe.runtime),
            "reader": ShardReader(replace(inputs, files={}, shards=()), skip_bad_rows=skip_bad_rows),
            "output": storage,
            "threads": threads,
        }
        for shard, bad in _run_workers(todo, files, job, workers=min(workers, len(todo))):
            rows, bad_rows = rows + shard.rows, bad_rows + bad
            progress("predicting rows", rows, inputs.rows)
    return BatchPredictionResult(rows, len(inputs.shards), resumed, bad_rows, workers, threads)


def _job_settings(pipe: Pipeline, inputs: ShardedInput, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What decides the predictions and, with the rows of a shard, their split into files."""
    # Other verbs add to limbert.json; what predictions take from it, policy and temperatures, is compared by itself.
    weights = {name: content for name, content in files.items() if name != RECORD_FILENAME}
    return {
        "format": FORMAT_VERSION,
        "checkpoint": _fingerprint(weights),
        "policy": pipe.policy.to_dict(),
        "temperatures": pipe.checkpoint.model.record.get(TEMPERATURES_KEY, {}),
        "runtime": pipe.runtime.runtime,
        "precision": pipe.runtime.precision,
        "max_length": pipe.checkpoint.max_length,
        "text_column": inputs.columns.text,
        "pair_column": inputs.columns.pair,
        "kept": inputs.schema.names,
    } | {f"input {path}": file for path, file in inputs.files.items()}


def _run_workers(
    shards: Sequence[Shard], files: Mapping[str, bytes], job: Mapping[str, Any], *, workers: int
) -> Iterator[tuple[Shard, int]]:
    """Shards and their bad rows as they are finished, in any order; Ray restarts dead workers and repeats their shards.

    Workers get shards when they run: where the cluster has no room for all of them yet, the others begin.
    """
    import ray
    from ray.exceptions import RayActorError, RayError

    options = {"num_cpus": job["threads"], "max_restarts": -1, "max_task_retries": MAX_ATTEMPTS - 1}
    start_worker, reference = ray.remote(**options)(ShardWorker).remote, ray.put(files)
    actors: list[Any] = [start_worker(reference, **job) for _ in range(workers)]
    pending: dict[Any, tuple[Any, Shard | None]] = {actor.__ray_ready__.remote(): (actor, None) for actor in actors}
    shard, todo, unfinished = None, iter(shards), len(shards)
    try:
        while unfinished:
            (ended,), _ = ray.wait([*pending])
            actor, shard = pending.pop(ended)
            bad_rows = ray.get(ended)
            if upcoming := next(todo, None):
                pending[actor.predict.remote(upcoming)] = actor, upcoming
            if shard:
                unfinished -= 1
                yield shard, bad_rows
    except RayError as error:
        if isinstance(cause := getattr(error, "cause", None), LimbertError):
            raise cause from None
        if shard and isinstance(error, RayActorError):
            span = f"rows {shard.start + 1} to {shard.start + shard.rows}"
            reason = f"the worker died {MAX_ATTEMPTS} times on {span} (out of memory?); try fewer --shard-rows"
            raise DataError(f"{shard.path}: {reason}") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()  # after the remote traceback
        raise StorageError(f"a worker failed: {reason}; finished shards stay") from error
    finally:
        for actor in actors:
            ray.kill(actor)


class ShardWorker:
    """Reads, predicts and writes shards with a model that it loads once from a packed checkpoint; a Ray actor."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        pipeline_options: Mapping[str, Any],
        reader: ShardReader,
        output: Storage,
        threads: int,
    ) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self._reader, self._output = reader, output
        self._pipeline = pipeline(unpack_checkpoint(files), device="cpu", threads=threads, **pipeline_options)

    def predict(self, shard: Shard) -> int:
        """Read, predict and write one shard; returns the number of rows without a text."""
        kept, indices, examples = self._reader.read(shard)
        predictions = self._pipeline.predict(examples) if indices else []
        values = [prediction.to_dict() | prediction.cost_to_dict() for prediction in predictions]
        self._output.write(shard.name, to_parquet(kept, indices, values, prediction_schema(self._pipeline.task)))
        return examples.bad_rows


def to_parquet(
    kept: pyarrow.Table, indices: Sequence[int], predictions: Sequence[Mapping[str, Any]], schema: pyarrow.Schema
) -> pyarrow.Buffer:
    """A Parquet file: the kept columns, and the predictions at these rows (null elsewhere)."""
    by_row, sink = dict(zip(indices, predictions, strict=True)), pyarrow.BufferOutputStream()
    predicted = pyarrow.Table.from_pylist([by_row.get(index, {}) for index in range(kept.num_rows)], schema)
    table = pyarrow.table(kept.columns + predicted.columns, schema=pyarrow.schema([*kept.schema, *schema]))
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()
