"""``limbert serve``: a trained model over HTTP, at the variant that each request and the load call for."""

import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.core.config import field_help
from limbert.errors import ConfigError, LimbertError

if TYPE_CHECKING:
    from limbert.serve.settings import ServeSettings

API_KEY_ENV = "LIMBERT_API_KEY"


def _settings_option(name: str, *flags: str, **kwargs: Any) -> Any:
    from limbert.serve.settings import ServeSettings

    return typer.Option(*flags, help=field_help(ServeSettings, name), **kwargs)


def serve(
    run: Annotated[str, typer.Argument(help="elastic model", metavar="RUN")],
    host: Annotated[str, _settings_option("host", "--host")] = "127.0.0.1",
    port: Annotated[int, _settings_option("port", "--port")] = 8080,
    slo: Annotated[str, _settings_option("slo", "--slo")] = "50ms",
    policy: Annotated[str, _settings_option("policy", "--policy")] = "adaptive",
    max_batch_tokens: Annotated[int, _settings_option("max_batch_tokens", "--max-batch-tokens")] = 2048,
    max_queue: Annotated[int, _settings_option("max_queue", "--max-queue")] = 1024,
    max_texts: Annotated[int, _settings_option("max_texts", "--max-texts")] = 512,
    max_body: Annotated[str, _settings_option("max_body", "--max-body")] = "2MB",
    max_length: Annotated[int | None, _settings_option("max_length", "--max-length", show_default=False)] = None,
    api_key: Annotated[
        str | None, _settings_option("api_key", "--api-key", envvar=API_KEY_ENV, show_default=False, show_envvar=True)
    ] = None,
    cors_origin: Annotated[list[str] | None, _settings_option("cors_origins", "--cors-origin")] = None,
    workers: Annotated[int, _settings_option("workers", "--workers")] = 1,
    threads: Annotated[int | None, _settings_option("threads", "--threads", show_default=False)] = None,
    device: Annotated[str, _settings_option("device", "--device")] = "auto",
    precision: opt.RunPrecision = "fp32",
    name: Annotated[str | None, _settings_option("name", "--name", show_default=False)] = None,
    drain: Annotated[str, _settings_option("drain", "--drain")] = "30s",
    background: Annotated[
        bool, typer.Option("--background", help="return once the server is ready, and leave it running")
    ] = False,
    ray: Annotated[bool, typer.Option("--ray", help="on Ray Serve: the cluster of $RAY_ADDRESS, or a new one")] = False,
    replicas: Annotated[str | None, typer.Option(help="with --ray: number of replicas, 3 or 1:8 (default: 1)")] = None,
    replica_requests: Annotated[
        float | None,
        typer.Option(help="with --ray: requests in progress per replica that scaling aims at (default: 8)"),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Serve a model over HTTP: protocols of Hugging Face, TEI and Open Inference, a playground, health, metrics.

    With the policy adaptive, the best variant runs that keeps the latency within --slo under the present load. A
    request that cannot meet its deadline is refused at once. SIGTERM stops the server after requests in progress.

    Example: limbert serve runs/mrpc --slo 50ms

    Example: limbert serve runs/mrpc --policy static:0.5x0.75 --port 8017 --workers 2

    Example: limbert serve runs/mrpc --ray --replicas 1:8 --threads 2 --host 0.0.0.0
    """
    from limbert.core.units import parse_quantity
    from limbert.serve.settings import ServeSettings

    _check_ray_options(ray, workers, device, replicas, replica_requests)
    settings = ServeSettings(
        host=host,
        port=port,
        slo=parse_quantity(slo, quantity_type="latency", option="--slo"),
        policy=policy,
        max_batch_tokens=max_batch_tokens,
        max_queue=max_queue,
        max_texts=max_texts,
        max_body=int(parse_quantity(max_body, quantity_type="size", option="--max-body")),
        max_length=max_length,
        api_key=api_key,
        cors_origins=tuple(cors_origin or ()),
        workers=workers,
        threads=threads,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        name=name,
        drain=parse_quantity(drain, quantity_type="latency", option="--drain"),
    )
    if background:
        _serve_in_background(as_json=as_json)
        return
    # OpenMP threads that spin while they wait take the cores that the network needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # By default oneDNN caches 1024 primitives, one for each batch shape: 180 MB after 2,100 batches of all shapes. 64
    # of them take 20 to 40 MB and are as fast.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn has its own handler, and after it
    opt.prepare_libraries(None)

    def on_ready(address: str) -> None:
        _print_address(run, settings, address, as_json=as_json)

    if ray:
        from limbert.serve.ray import ReplicaConfig, serve_on_ray

        replica_config = ReplicaConfig.parse(replicas or "1", target_ongoing_requests=replica_requests or 8.0)
        serve_on_ray(run, settings, replica_config, on_ready=on_ready)
        return
    from limbert.serve.process import serve as run_server

    run_server(run, settings, on_ready=on_ready)


def _check_ray_options(
    ray: bool, workers: int, device: str, replicas: str | None, replica_requests: float | None
) -> None:
    if ray and workers != 1:
        raise ConfigError("--workers is for one machine; with --ray use --replicas")
    if ray and device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device} is for one machine; replicas on Ray run on CPUs")
    for name, value in (("--replicas", replicas), ("--replica-requests", replica_requests)):
        if not ray and value is not None:
            raise ConfigError(f"{name} is for --ray")


def _serve_in_background(*, as_json: bool) -> None:
    """Start this command without ``--background`` in a session of its own, and wait until it is ready.

    Raises:
        LimbertError: if it ends before it is ready; its messages are printed.
    """
    import json

    from limbert.cli import show

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
        show.print_json(ready)
    else:
        show.stderr.print(
            f"{ready['run']} at {ready['url']}; stop it with: kill {process.pid} (messages: {log.name})",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _print_address(run: str, settings: "ServeSettings", url: str, *, as_json: bool) -> None:
    from limbert.cli import show

    if as_json:
        show.print_json({"run": run, "url": url, "policy": settings.policy, "slo_ms": 1000 * settings.slo})
        return
    policy = f"adaptive, {1000 * settings.slo:g} ms" if settings.policy == "adaptive" else settings.policy
    show.stderr.print(f"{run} at {url} ({policy}); playground at {url}/playground", highlight=False)
