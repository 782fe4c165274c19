"""The same application on Ray Serve: replicas behind one port, as many as the load asks for."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limbert.core.config import require
from limbert.errors import ConfigError, import_optional
from limbert.inference.ray import pack_checkpoint, ray_session, unpack_checkpoint
from limbert.serve.process import bind_socket, create_serving_app, import_uvicorn
from limbert.serve.service import Service
from limbert.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

_HEALTH_CHECK_PERIOD = 5.0  # seconds
_UPSCALE_DELAY, _DOWNSCALE_DELAY = 5.0, 120.0  # seconds that the load must last


@dataclass(frozen=True)
class ReplicaConfig:
    """How many copies of the model answer.

    Attributes:
        fewest: that there always are.
        most: that the load may call for.
        requests: under way in each that the number of replicas is held to; more call for another replica.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 8.0

    def __post_init__(self) -> None:
        require(self.min_replicas > 0, "replicas", self.min_replicas, "at least 1")
        require(
            self.max_replicas >= self.min_replicas,
            "replicas at most",
            self.max_replicas,
            f"at least {self.min_replicas}",
        )
        require(self.target_ongoing_requests > 0, "requests a replica", self.target_ongoing_requests, "more than 0")

    @classmethod
    def parse(cls, text: str, *, target_ongoing_requests: float) -> "ReplicaConfig":
        """Read ``3``, or ``1:8`` for one to eight.

        Raises:
            ConfigError: for anything else.
        """
        fewest, colon, most = text.partition(":")
        if not (fewest.isdecimal() and (most.isdecimal() or not colon)):
            raise ConfigError(f"--replicas {text!r} is neither a number such as 3 nor a range such as 1:8")
        return cls(int(fewest), int(most or fewest), target_ongoing_requests)


def serve_on_ray(
    run_dir: str, settings: ServeSettings, replicas: ReplicaConfig, *, on_ready: Callable[[str], None]
) -> None:
    """Serve on the Ray of ``RAY_ADDRESS``, or on one that is started here, until SIGTERM or SIGINT.

    The model's files travel through Ray's object store: machines of the cluster need Limbert, not the run.

    Args:
        run: a trained model.
        settings: of each replica; ``threads`` are 1 where none are given, and are what a replica reserves.
        replicas: how many there are.
        ready: called with the address once requests are answered.

    Raises:
        LimbertError: if a library is missing, the model cannot be loaded, or the port cannot be used.
    """
    import_uvicorn()
    import_optional("ray", extra="scale")
    threads = settings.threads or 1
    settings = replace(settings, threads=threads, workers=1)
    named = Service.load(run_dir, settings).model_name  # refuses here what every replica would refuse
    packed = pack_checkpoint(run_dir)
    with bind_socket(settings) as probe:  # a port that is taken is found here, and 0 becomes a free one
        settings = replace(settings, port=probe.getsockname()[1], name=named)
    end = threading.Event()
    size = sum(content.nbytes for content in packed.values())
    with ray_session(cpus=replicas.max_replicas * threads, model_bytes=size) as ray, _set_on_signal(end):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=_LOGGING_CONFIG)
        try:
            deployed = _deployment(settings, replicas, ray.put(packed)).bind()
            serve.run(deployed, name=named, route_prefix="/", logging_config=_LOGGING_CONFIG)
        except RuntimeError as error:
            raise ConfigError(f"the replicas do not start: {str(error).strip().splitlines()[-1]}") from error
        try:
            on_ready(f"http://{settings.host}:{settings.port}")
            end.wait()
        finally:
            serve.delete(named)  # drains


@contextmanager
def _set_on_signal(event: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set the event."""
    before = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_LOGGING_CONFIG = {"log_level": "ERROR", "enable_access_log": False}


def _deployment(settings: ServeSettings, replicas: ReplicaConfig, packed_run_ref: Any) -> Any:
    """The application as a deployment; each replica builds its own, with its own service."""
    from ray import serve

    def build() -> "FastAPI":
        import ray

        service = Service.load(unpack_checkpoint(ray.get(packed_run_ref)), settings)
        app = create_serving_app(service, settings, lambda: None)
        app.state.service = service
        return app

    class Limbert:
        app: "FastAPI"  # what build made; Ray Serve sets it

        def check_health(self) -> None:
            if not self.app.state.service.healthy:
                raise RuntimeError("the compute has died")  # Ray Serve then replaces the replica

    return serve.deployment(
        serve.ingress(build)(Limbert),
        name="limbert",
        max_ongoing_requests=settings.max_queue,  # the service itself refuses what cannot be answered in time
        graceful_shutdown_timeout_s=settings.drain,
        health_check_period_s=_HEALTH_CHECK_PERIOD,
        ray_actor_options={"num_cpus": settings.threads},
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_ongoing_requests,
            "upscale_delay_s": _UPSCALE_DELAY,
            "downscale_delay_s": _DOWNSCALE_DELAY,
        },
    )
