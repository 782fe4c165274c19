"""The application on Ray Serve: replicas behind one port that scale with the load."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI

from limbert.core.config import require
from limbert.errors import ConfigError, import_optional
from limbert.evaluation.results import POLICIES_NAME, RESULTS_NAME
from limbert.inference.ray import pack_checkpoint, ray_session, unpack_checkpoint
from limbert.serve.process import bind_socket, create_serving_app
from limbert.serve.service import Service
from limbert.serve.settings import ServeSettings

_HEALTH_CHECK_PERIOD = 5.0  # seconds
_UPSCALE_DELAY, _DOWNSCALE_DELAY = 5.0, 120.0  # seconds for which the load must last
_LOGGING_CONFIG = {"log_level": "ERROR", "enable_access_log": False}


@dataclass(frozen=True)
class ReplicaConfig:
    """Number of replicas; autoscaling aims at ``target_ongoing_requests`` in progress per replica."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 8.0

    def __post_init__(self) -> None:
        low, high = self.min_replicas, self.max_replicas
        require(low > 0, "replicas", low, "at least 1")
        require(high >= low, "maximum of replicas", high, f"at least {low}")
        target = self.target_ongoing_requests
        require(target > 0, "requests per replica", target, "more than 0")

    @classmethod
    def parse(cls, text: str, *, target_ongoing_requests: float) -> "ReplicaConfig":
        """Read ``3``, or ``1:8`` for one to eight; anything else is a `ConfigError`."""
        low, colon, high = text.partition(":")
        if not (low.isdecimal() and (high.isdecimal() or not colon)):
            raise ConfigError(f"--replicas is {text!r}; it must be a number such as 3 or a range such as 1:8")
        return cls(int(low), int(high or low), target_ongoing_requests)


def serve_on_ray(
    run_dir: str, settings: ServeSettings, replicas: ReplicaConfig, *, on_ready: Callable[[str], None]
) -> None:
    """Serve on the cluster of ``RAY_ADDRESS``, or on one started here, until SIGTERM or SIGINT.

    The model's files travel through Ray's object store: machines of the cluster need Limbert, not the run. ``threads``
    of the settings (default 1) is also the number of CPUs that a replica reserves.

    Raises:
        LimbertError: if a library is missing, the model cannot be loaded, or the port cannot be used.
    """
    import_optional("ray", extra="scale")
    threads = settings.threads or 1
    settings = replace(settings, threads=threads, workers=replicas.max_replicas)  # which divide the memory
    service = Service(run_dir, settings)  # errors are raised here instead of in every replica
    name, settings = service.model_name, replace(settings, runtime=service.runtime_name)
    del service
    measured = [path for name in (RESULTS_NAME, POLICIES_NAME) if (path := Path(run_dir) / name).is_file()]
    packed = pack_checkpoint(run_dir) | {path.name: np.fromfile(path, dtype=np.uint8) for path in measured}
    with bind_socket(settings) as listener:  # finds a port in use, and a free one for port 0
        settings = replace(settings, port=listener.getsockname()[1], name=name)
    stop = threading.Event()
    model_bytes = sum(map(len, packed.values()))
    with ray_session(cpus=replicas.max_replicas * threads, model_bytes=model_bytes) as ray, _set_on_signal(stop):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=_LOGGING_CONFIG)
        try:
            application = _deployment(settings, replicas, ray.put(packed)).bind()
            serve.run(application, name=name, route_prefix="/", logging_config=_LOGGING_CONFIG)
        except RuntimeError as error:
            raise ConfigError(f"the replicas do not start: {str(error).strip().splitlines()[-1]}") from error
        try:
            on_ready(f"http://{settings.host}:{settings.port}")
            stop.wait()
        finally:
            serve.delete(name)  # drains


@contextmanager
def _set_on_signal(event: threading.Event) -> Iterator[None]:
    previous = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _deployment(settings: ServeSettings, replicas: ReplicaConfig, packed_run_ref: Any) -> Any:
    """The application as a deployment; each replica builds its own service."""
    from ray import serve

    def build() -> FastAPI:
        import ray

        service = Service(unpack_checkpoint(ray.get(packed_run_ref)), settings)
        app = create_serving_app(service, lambda: None)
        app.state.service = service
        return app

    class Limbert:
        app: FastAPI  # set by Ray Serve

        def check_health(self) -> None:
            if not self.app.state.service.healthy:
                raise RuntimeError("inference has failed")  # Ray Serve replaces the replica

    return serve.deployment(
        serve.ingress(build)(Limbert),
        name="limbert",
        max_ongoing_requests=settings.max_queue,  # admission control is the service's
        graceful_shutdown_timeout_s=settings.drain,
        health_check_period_s=_HEALTH_CHECK_PERIOD,
        ray_actor_options={"num_cpus": settings.threads},
        autoscaling_config={
            **asdict(replicas),  # named as Ray Serve names them
            "upscale_delay_s": _UPSCALE_DELAY,
            "downscale_delay_s": _DOWNSCALE_DELAY,
        },
    )
