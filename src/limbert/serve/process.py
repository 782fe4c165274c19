"""Puts the application behind a port: one process or several, ended by SIGTERM once what is under way is answered."""

import asyncio
import logging
import math
import multiprocessing
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbert.errors import ConfigError, LimbertError
from limbert.serve.service import Service
from limbert.serve.settings import ServeSettings

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from fastapi import FastAPI

_WORKER_START_TIMEOUT = 120  # seconds that a process may take to load


def serve(run_dir: str | Path, settings: ServeSettings, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends at once.

    Args:
        run: a trained model.
        settings: how.
        ready: called with the address once requests are answered; with several processes, once one of them does.

    Raises:
        LimbertError: if uvicorn or FastAPI is missing, the model cannot be loaded, or the port cannot be used.
    """
    uvicorn = import_uvicorn()
    with bind_socket(settings) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def announce() -> None:
            listener.listen()  # uvicorn does so only after the start: who is told the address may connect at once
            on_ready(address)

        common: dict[str, Any] = {
            "log_level": logging.WARNING,
            "access_log": False,
            "server_header": False,
            "ws": "none",
            "lifespan": "on",
            "timeout_graceful_shutdown": math.ceil(settings.drain),
        }
        if settings.workers == 1:
            service = Service.load(run_dir, settings)
            service.start()  # here, where an error ends in one line
            app = create_serving_app(service, settings, announce)
            uvicorn.Server(uvicorn.Config(app, **common)).run(sockets=[listener])
            return
        Service.load(run_dir, settings)  # refuses here what every process would refuse
        started = multiprocessing.get_context("spawn").Event()
        threading.Thread(target=_announce_when_started, args=(started, announce), daemon=True).start()
        config = uvicorn.Config(
            partial(_worker_app, str(run_dir), settings, started),
            factory=True,
            workers=settings.workers,
            timeout_worker_healthcheck=_WORKER_START_TIMEOUT,
            **common,
        )
        uvicorn.supervisors.Multiprocess(config, sockets=[listener]).run()


def _announce_when_started(started: "Event", on_ready: Callable[[], None]) -> None:
    started.wait()
    on_ready()


def _worker_app(run_dir: str, settings: ServeSettings, started: "Event") -> "FastAPI":
    """The application of one of several processes, in that process."""
    return create_serving_app(Service.load(run_dir, settings), settings, started.set)


def create_serving_app(service: Service, settings: ServeSettings, on_ready: Callable[[], None]) -> "FastAPI":
    """The application that starts its service with itself and drains it at the end."""
    from limbert.serve.app import create_app

    @asynccontextmanager
    async def lifespan(_: "FastAPI") -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        on_ready()
        yield
        await service.drain(settings.drain)

    app = create_app(service)
    context: Callable[[Any], AbstractAsyncContextManager[None]] = lifespan
    app.router.lifespan_context = context
    return app


def bind_socket(settings: ServeSettings) -> socket.socket:
    """A socket bound to the address, not yet listening.

    Raises:
        ConfigError: if it cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}"
        ) from error
    listener.set_inheritable(True)
    return listener


def import_uvicorn() -> Any:
    """The library, with its supervisors.

    Raises:
        LimbertError: if something that serving needs is missing.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
        import uvicorn.supervisors
    except ImportError as error:
        raise LimbertError(f"serving needs {error.name}; pip install 'limbert[serve]'") from error
    return uvicorn
