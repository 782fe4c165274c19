"""A function on shards of items, each with a result file, in processes that end with their parent.

An interrupted run resumes after the files that exist. The shards, and so the results, do not depend on the number of
processes. (Those of ``Dataset.map(num_proc=)`` do, and its processes outlive a parent that is killed.)
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from limbert.errors import LimbertError
from limbert.files import write_json_lines

ShardFunction = Callable[[list[Any]], dict[str, Any]]  # from the items of a shard to JSON values

_worker_functions: dict[str, ShardFunction] = {}  # in a worker process: its one function


def map_shards(
    load: Callable[[], ShardFunction],
    shards: Mapping[Path, list[Any]],
    *,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    """Write the result for the items of every shard to its JSON file, unless that exists.

    Args:
        load: returns the function; called once in every process, so it must be picklable.
        shards: items by file.
        workers: processes of one thread each; one works in this process.
        progress: called with finished and all shards.

    Raises:
        StorageError: if a file cannot be written.
        LimbertError: if a process ends early.
    """
    missing = {path: items for path, items in shards.items() if not path.exists()}
    done = len(shards) - len(missing)
    progress(done, len(shards))
    if workers > 1 and len(missing) > 1:
        spawn, size = multiprocessing.get_context("spawn"), min(workers, len(missing))
        others = {*multiprocessing.active_children()}
        with ProcessPoolExecutor(size, mp_context=spawn, initializer=_start_worker, initargs=(load,)) as pool:
            try:
                futures = as_completed([pool.submit(_write_in_worker, *shard) for shard in missing.items()])
                for finished, future in enumerate(futures, done + 1):
                    future.result()
                    progress(finished, len(shards))
            except BrokenProcessPool as error:
                raise LimbertError("a worker process ended early; run the same command again to resume") from error
            except BaseException:  # do not wait for the shards in work
                for worker in {*multiprocessing.active_children()} - others:
                    worker.terminate()
                raise
    elif missing:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            function = load()
            for finished, (path, items) in enumerate(missing.items(), done + 1):
                write_json_lines(path, [function(items)])
                progress(finished, len(shards))
        finally:
            torch.set_num_threads(threads)


def _start_worker(load: Callable[[], ShardFunction]) -> None:
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


def _write_in_worker(path: Path, items: list[Any]) -> None:
    write_json_lines(path, [_worker_functions["map"](items)])
