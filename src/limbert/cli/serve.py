"""``limbert serve``: a trained model over HTTP, at the size that each request asks for and the load allows."""

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.core.config import field_help
from limbert.errors import ConfigError

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
    workers: Annotated[int, _settings_option("workers", "--workers")] = 1,
    threads: Annotated[int | None, _settings_option("threads", "--threads", show_default=False)] = None,
    device: Annotated[str, _settings_option("device", "--device")] = "auto",
    precision: opt.RunPrecision = "fp32",
    name: Annotated[str | None, _settings_option("name", "--name", show_default=False)] = None,
    drain: Annotated[str, _settings_option("drain", "--drain")] = "30s",
    ray: Annotated[bool, typer.Option("--ray", help="on Ray Serve: on $RAY_ADDRESS, or on a Ray of its own")] = False,
    replicas: Annotated[str | None, typer.Option(help="with --ray: copies of the model, 3 or 1:8 (default: 1)")] = None,
    replica_requests: Annotated[
        float | None, typer.Option(help="with --ray: requests under way in each; more call for another (default: 8)")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Serve a model over HTTP: Hugging Face's, TEI's and the Open Inference protocol, a playground, health and metrics.

    With the policy adaptive every answer comes from the best size that keeps to --slo under the load of the moment.
    Requests that cannot be answered in time are refused at once. SIGTERM ends it once all under way is answered.

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
        workers=workers,
        threads=threads,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        name=name,
        drain=parse_quantity(drain, quantity_type="latency", option="--drain"),
    )
    # Threads that wait for work burn the cores that the network needs: let them sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps 1024 prepared products, one a shape of batch: over 2,100 batches of all shapes they grew by 180 MB,
    # 64 by 20 to 40 MB, in the same time.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # while loading; later uvicorn's own, which ends with this
    opt.prepare_libraries(None)

    def ready(address: str) -> None:
        _print_address(run, settings, address, as_json=as_json)

    if ray:
        from limbert.serve.ray import ReplicaConfig, serve_on_ray

        serve_on_ray(
            run,
            settings,
            ReplicaConfig.parse(replicas or "1", target_ongoing_requests=replica_requests or 8.0),
            on_ready=ready,
        )
        return
    from limbert.serve.process import serve as run_server

    run_server(run, settings, on_ready=ready)


def _check_ray_options(
    ray: bool, workers: int, device: str, replicas: str | None, replica_requests: float | None
) -> None:
    """Refuse options that are for the other way of serving."""
    if ray and workers != 1:
        raise ConfigError("--workers is for one machine; with --ray say --replicas")
    if ray and device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device} is for one machine; the replicas of Ray compute on CPUs")
    for name, value in (("--replicas", replicas), ("--replica-requests", replica_requests)):
        if not ray and value is not None:
            raise ConfigError(f"{name} is for --ray")


def _print_address(run: str, settings: "ServeSettings", url: str, *, as_json: bool) -> None:
    """Where the server is and how it answers."""
    from limbert.cli import show

    if as_json:
        show.print_json({"run": run, "url": url, "policy": settings.policy, "slo_ms": 1000 * settings.slo})
        return
    how = f"adaptive, {1000 * settings.slo:g} ms" if settings.policy == "adaptive" else settings.policy
    show.stderr.print(f"{run} at {url} ({how}); playground at {url}/playground", highlight=False)
