"""``limbert serve``: a trained model over HTTP, at the sub-network that each request and the load allow."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import config_field
from limbert.errors import ConfigError, LimbertError, import_optional
from limbert.serve.settings import ServeSettings


@dataclass(frozen=True)
class _ServeMode:
    background: bool = config_field(False, "return once the server is ready, and leave it running")
    ray: bool = config_field(False, "on Ray Serve: the cluster of $RAY_ADDRESS, or a new one")
    replicas: str | None = config_field(None, "with --ray: number of replicas, 3 or 1:8 (default: 1)")
    replica_requests: float | None = config_field(
        None, "with --ray: requests in progress per replica that scaling aims at (default: 8)"
    )

    def check(self, settings: ServeSettings) -> None:
        """Raise ConfigError for options that are not for Ray, or for Ray alone."""
        if self.ray and settings.workers != 1:
            raise ConfigError("--workers is for one machine; with --ray use --replicas")
        if self.ray and settings.device not in ("auto", "cpu"):
            raise ConfigError(f"--device {settings.device} is for one machine; replicas on Ray run on CPUs")
        for name in ("replicas", "replica_requests"):
            if not self.ray and getattr(self, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is for --ray")


@config_options(settings=ConfigOptions(ServeSettings), mode=ConfigOptions(_ServeMode, "Background and Ray"))
def serve(run: opt.Run, settings: ServeSettings, mode: _ServeMode, as_json: opt.AsJson = False) -> None:
    """Serve a model over HTTP: protocols of Hugging Face, TEI and Open Inference, a playground, health, metrics.

    With the policy adaptive, the best variant runs that keeps the latency within --slo under the present load. A
    request that cannot meet its deadline is refused at once. SIGTERM stops the server after requests in progress.

    \b
    Example: limbert serve runs/mrpc --slo 50ms
    Example: limbert serve runs/mrpc --policy static:0.5x0.75 --port 8017 --workers 2
    Example: limbert serve runs/mrpc --ray --replicas 1:8 --threads 2 --host 0.0.0.0
    """
    mode.check(settings)
    for library in ("fastapi", "uvicorn", "prometheus_client"):
        import_optional(library, extra="serve")
    run = os.path.expanduser(run)
    if mode.background:
        _serve_in_background(as_json=as_json)
        return
    # OpenMP threads that spin while they wait take the cores that the network needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The tokenizers library would wake threads for every request.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # By default oneDNN caches 1024 primitives, one for each batch shape: 180 MB after 2,100 batches of all shapes. 64
    # of them take 20 to 40 MB and are as fast.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn has its own handler, and after it
    opt.prepare_libraries(None)

    def on_ready(address: str) -> None:
        _print_address(run, settings, address, as_json=as_json)

    if mode.ray:
        from limbert.serve.ray import ReplicaConfig, serve_on_ray

        replicas = ReplicaConfig.parse(mode.replicas or "1", target_ongoing_requests=mode.replica_requests or 8.0)
        serve_on_ray(run, settings, replicas, on_ready=on_ready)
        return
    from limbert.serve.process import serve as run_server

    run_server(run, settings, on_ready=on_ready)


def _serve_in_background(*, as_json: bool) -> None:
    """Start this command without ``--background`` in a session of its own, and wait until it is ready.

    Raises:
        LimbertError: if it ends before it is ready; its messages are printed.
    """
    from limbert.cli import console

    arguments = [argument for argument in sys.argv[1:] if argument not in ("--background", "--json")]
    with tempfile.NamedTemporaryFile(prefix="limbert-serve-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "limbert", *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
    except BaseException:
        process.terminate()
        raise
    if not line:
        status = process.wait()
        with open(log.name, encoding="utf-8", errors="replace") as file:
            message = file.read().strip().removeprefix("limbert: error: ")
        os.unlink(log.name)
        raise LimbertError(message or f"the server ended with status {status} before it was ready")
    ready = json.loads(line) | {"pid": process.pid, "log": log.name}
    if as_json:
        console.print_json(ready)
    else:
        stop = f"stop it with: kill {process.pid} (messages: {log.name})"
        console.note(f"{ready['run']} at {ready['url']}; {stop}")


def _print_address(run: str, settings: ServeSettings, url: str, *, as_json: bool) -> None:
    from limbert.cli import console

    if as_json:
        console.print_json({"run": run, "url": url, "policy": settings.policy, "slo_ms": 1000 * settings.slo})
        return
    policy = f"adaptive, {1000 * settings.slo:g} ms" if settings.policy == "adaptive" else settings.policy
    console.note(f"{run} at {url} ({policy}); playground at {url}/playground")
