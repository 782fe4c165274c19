"""Work cut into pieces that several processes share: each piece is a file, there whole or not at all.

A run that was killed goes on with the pieces that are missing, and as a piece depends on nothing but its number, the
result is the same for any number of processes.
"""

import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch

from limbert.errors import LimbertError, StorageError
from limbert.files import replaced_file

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
