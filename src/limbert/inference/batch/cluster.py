"""A Ray to work on: the one that ``RAY_ADDRESS`` names, or one of this machine that ends with the work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from limbert.core.config import require
from limbert.errors import ConfigError

ADDRESS_VARIABLE = "RAY_ADDRESS"
_OBJECT_STORE_BYTES = 256 * 2**20  # bytes beside the model's: shards' descriptions are all that travels


@dataclass(frozen=True)
class WorkerPool:
    """Where the work is done.

    Attributes:
        workers: that run at a time.
        threads: of each.
    """

    workers: int
    threads: int


@contextmanager
def ray_session(*, cpus: int, model_bytes: int = 0) -> Iterator[Any]:
    """Connect to the Ray of ``RAY_ADDRESS``, use the one that this process has, or start one and end it again.

    One that is started here has no dashboard and sends no usage statistics.

    Args:
        cpus: that one started here offers, whatever this machine has.
        model_bytes: size of the model's files, for which it makes room.

    Yields:
        The library.

    Raises:
        ConfigError: Ray is not installed, or the address does not answer.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if os.environ.get(ADDRESS_VARIABLE):
            ray.init(**quiet)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            room = _OBJECT_STORE_BYTES + 2 * model_bytes
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=room, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"no Ray at {os.environ.get(ADDRESS_VARIABLE) or 'this machine'}: {_first_line(error)}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def worker_pool(workers: int | None, threads: int | None, *, model_bytes: int = 0) -> Iterator[WorkerPool]:
    """A Ray (see `connected`), and how many workers it takes.

    Args:
        workers: None is one for every ``threads`` cores.
        threads: of each worker; None divides this machine's cores among the workers, on a cluster it is 1.
        model_bytes: size of the model's files.

    Raises:
        ConfigError: Ray is not installed, or the address does not answer.
    """
    require(workers is None or workers > 0, "workers", workers, "at least 1")
    require(threads is None or threads > 0, "threads", threads, "at least 1")
    here = _local_pool(workers, threads)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else each pool of workers warns of its own arguments
    with ray_session(cpus=here.workers * here.threads, model_bytes=model_bytes) as ray:
        if not os.environ.get(ADDRESS_VARIABLE):
            yield here
        else:
            each = threads or 1
            yield WorkerPool(workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // each), each)


def import_ray() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed; pip install 'limbert[scale]'") from error
    return ray


def _local_pool(workers: int | None, threads: int | None) -> WorkerPool:
    cores = os.cpu_count() or 1
    if workers is None:
        return WorkerPool(max(1, cores // (threads or 1)), threads or 1)
    return WorkerPool(workers, threads or max(1, cores // workers))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
