"""`Dataset.map` in shards that are files, so that an interrupted run resumes, in processes that end with their parent.

The shards, and so the result, do not depend on the number of processes. (Those of ``map(num_proc=)`` do, and its
processes outlive a parent that is killed.)
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, concatenate_datasets

from limbert.data.token_cache import hidden_progress_bars
from limbert.errors import LimbertError, StorageError

BATCHES_PER_SHARD = 4

BatchFunction = Callable[[dict[str, list[Any]]], dict[str, list[Any]]]


def map_in_shards(
    load: Callable[[], BatchFunction],
    items: Sequence[Any],
    folder: Path,
    *,
    name: str,
    batch_size: int,
    features: Features,
    workers: int,
    progress: Callable[[int, int], None],
) -> Dataset:
    """Map items (column ``item``) in batches, in shards that are skipped if their file exists.

    Args:
        load: returns the function of a batch; called once in every process, so it must be picklable.
        items: numbers or strings.
        folder, name: of the shards.
        batch_size: items in a batch.
        features: columns that the function returns.
        workers: processes; one works in this process.
        progress: called with finished and all shards.

    Raises:
        StorageError: if a shard cannot be written.
        LimbertError: if a process ends early.
    """
    size = batch_size * BATCHES_PER_SHARD
    paths = {start: folder / f"{name}-{start // size:06d}.arrow" for start in range(0, len(items), size)}
    missing = {start: path for start, path in paths.items() if not path.exists()}
    tasks = [(list(items[start : start + size]), path, batch_size, features) for start, path in missing.items()]
    done = len(paths) - len(tasks)
    progress(done, len(paths))
    if workers > 1 and len(tasks) > 1:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(workers, len(tasks)), mp_context=spawn, initializer=_start_worker, initargs=(load,)
        ) as pool:
            try:
                futures = as_completed([pool.submit(_map_in_worker, *task) for task in tasks])
                for finished, future in enumerate(futures, done + 1):
                    future.result()
                    progress(finished, len(paths))
            except BrokenProcessPool as error:
                raise LimbertError("a worker process ended early; run the same command again to resume") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    elif tasks:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            function = load()
            for finished, task in enumerate(tasks, done + 1):
                _map_shard(function, *task)
                progress(finished, len(paths))
        finally:
            torch.set_num_threads(threads)
    return open_shards(folder, name)


def open_shards(folder: Path, name: str) -> Dataset:
    """The finished shards, in order."""
    return concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(folder.glob(f"{name}-*.arrow"))])


def _map_shard(function: BatchFunction, items: list[Any], path: Path, batch_size: int, features: Features) -> None:
    try:
        with hidden_progress_bars():
            Dataset.from_dict({"item": items}).map(
                function,
                batched=True,
                batch_size=batch_size,
                remove_columns="item",
                features=features,
                cache_file_name=str(path),
                new_fingerprint=path.stem,
            )
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


_worker_functions: dict[str, BatchFunction] = {}  # in a worker process: its one function


def _start_worker(load: Callable[[], BatchFunction]) -> None:
    """Prepare a worker process: it ends at once with Ctrl-C, and with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker_functions["map"] = load()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _map_in_worker(items: list[Any], path: Path, batch_size: int, features: Features) -> None:
    _map_shard(_worker_functions["map"], items, path, batch_size, features)
