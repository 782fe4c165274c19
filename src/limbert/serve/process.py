"""Runs the application on a port, in one or several processes, until SIGTERM; requests in progress are completed."""

import asyncio
import logging
import math
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import uvicorn
import uvicorn.supervisors
from fastapi import FastAPI
from starlette.responses import Response

from limbert.errors import ConfigError
from limbert.serve.app import create_app
from limbert.serve.errors import UnavailableError
from limbert.serve.schemas import error_response
from limbert.serve.service import Service
from limbert.serve.settings import ServeSettings

_WORKER_START_TIMEOUT = 120  # seconds that a worker may take to load
_QUIET: dict[str, Any] = {"log_level": logging.WARNING, "access_log": False, "server_header": False, "ws": "none"}


class _Supervisor(uvicorn.supervisors.Multiprocess):
    def __init__(self, *args: Any, **options: Any) -> None:
        self._outlives_terminal = signal.getsignal(getattr(signal, "SIGHUP", signal.SIGTERM)) is signal.SIG_IGN
        super().__init__(*args, **options)  # handles signals from here on

    def keep_subprocess_alive(self) -> None:
        """Close the workers' ends of the pipes, so that a health check ends when its worker is killed."""
        for worker in self.processes:
            worker.child_conn.close()
        super().keep_subprocess_alive()

    def handle_hup(self) -> None:
        """Stop when the terminal is closed, as one process does, unless ``nohup`` started the server."""
        if not self._outlives_terminal:
            self.handle_term()


def serve(run_dir: str | Path, settings: ServeSettings, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second SIGINT stops without waiting for requests in progress.

    While the model loads, requests get 503; ``on_ready`` is called with the address once they are accepted.

    Raises:
        LimbertError: if the model cannot be loaded, or the port cannot be used.
    """
    with bind_socket(settings) as listener, ExitStack() as loading:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        loading.enter_context(refuse_while_loading(listener))

        def announce() -> None:
            loading.close()
            on_ready(address)

        common = _QUIET | {"lifespan": "on", "timeout_graceful_shutdown": math.ceil(settings.drain)}
        service = Service(run_dir, settings)  # before any worker, so that errors are raised here
        if settings.workers == 1:
            service.start()
            app = create_serving_app(service, announce)
            uvicorn.Server(uvicorn.Config(app, **common)).run(sockets=[listener])
            return
        settings = replace(settings, runtime=service.runtime_name)  # auto was decided once, for all workers
        del service
        started = multiprocessing.get_context("spawn").Event()

        def announce_later() -> None:
            started.wait()
            announce()

        threading.Thread(target=announce_later, daemon=True).start()
        config = uvicorn.Config(
            partial(_worker_app, str(run_dir), settings, started),
            factory=True,
            workers=settings.workers,
            timeout_worker_healthcheck=_WORKER_START_TIMEOUT,
            **common,
        )

        _Supervisor(config, sockets=[listener]).run()


def _worker_app(run_dir: str, settings: ServeSettings, started: Event) -> FastAPI:
    """The application of one of several processes, in that process."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent decides
    return create_serving_app(Service(run_dir, settings), started.set)


def _stop_with_parent() -> None:
    """Shut this worker down when its parent has been killed, which would leave it on the port."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def create_serving_app(service: Service, on_started: Callable[[], None]) -> FastAPI:
    """The application that starts its service with itself and drains it at shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        on_started()
        yield
        await service.drain(service.settings.drain)

    app = create_app(service)
    app.router.lifespan_context = lifespan
    return app


@contextmanager
def refuse_while_loading(listener: socket.socket) -> Iterator[None]:
    """Respond with 503 to every request on a bound socket, in a thread, inside the context."""
    response: Response = error_response(UnavailableError("not ready yet: the server is loading the model"))
    response.headers["retry-after"] = "1"
    server = uvicorn.Server(uvicorn.Config(response, lifespan="off", timeout_graceful_shutdown=1, **_QUIET))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener.dup()]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def bind_socket(settings: ServeSettings) -> socket.socket:
    """A socket bound to the address, not yet listening; `ConfigError` if the address cannot be used."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise ConfigError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from error
    listener.set_inheritable(True)
    return listener
