"""What Prometheus reads. Each application counts for itself: nothing is global, so that two can live in one process.

With several workers each process counts for itself, and a scrape reaches one of them, whose ``limbert_worker_info``
says which: add up over ``pid`` what was scraped, or run one worker a port where exact sums matter.
"""

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from limbert.serve.selection import RequestOptions
from limbert.serve.service import RequestOutput, Service, TextInput

_LATENCY_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class ServerMetrics:
    """The counters of one application.

    Args:
        service: its state is read at each scrape.
    """

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        at, spent = self.registry, "Time that the slowest text of a request spent"
        self._requests = Counter("limbert_requests", "Requests answered.", ["protocol", "status"], registry=at)
        self._duration = Histogram(
            "limbert_request_duration_seconds", "From the first byte read to the last byte written.", ["protocol"],
            registry=at, buckets=_LATENCY_BUCKETS,
        )  # fmt: skip
        self._texts = Counter("limbert_rows", "Texts answered, by the size that ran.", ["size"], registry=at)
        self._tokens = Counter("limbert_tokens", "Tokens of the texts answered.", registry=at)
        self._flops = Counter("limbert_flops", "Floating-point operations spent on answers.", registry=at)
        self._truncated = Counter("limbert_truncated_rows", "Texts that were cut to the longest input.", registry=at)
        self._queue, self._tokenization, self._inference = (
            Histogram(f"limbert_{name}_seconds", f"{spent} {text}.", registry=at, buckets=_LATENCY_BUCKETS)
            for name, text in (
                ("queue", "waiting"),
                ("tokenization", "being tokenised"),
                ("inference", "being computed, with its batch"),
            )
        )
        at.register(_ServiceCollector(service))
        ProcessCollector(registry=at)

    def observe_output(self, output: RequestOutput) -> None:
        """Note what a request took."""
        timing = output.timing
        self._queue.observe(timing.queue)
        self._tokenization.observe(timing.tokenization)
        self._inference.observe(timing.inference)
        for row in output.outputs:
            self._texts.labels(row.variant).inc()
            self._truncated.inc(row.truncated)
        self._tokens.inc(sum(row.tokens for row in output.outputs))
        self._flops.inc(sum(row.flops for row in output.outputs))

    def observe_request(self, protocol: str, *, status: int, seconds: float) -> None:
        """Note that a request has ended; status 499 where its client did not wait."""
        self._requests.labels(protocol, str(status)).inc()
        self._duration.labels(protocol).observe(seconds)

    def exposition(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self.registry)


class _ServiceCollector:
    """The service's state as gauges, read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterator[Metric]:
        """None: so registering asks for nothing."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The gauges now."""
        service, now = self._service, self._service.snapshot()
        for name, text, value in (
            ("healthy", "1 while the compute thread lives.", service.healthy),
            ("ready", "1 while requests are taken.", service.ready),
            ("queued_rows", "Texts that wait.", now.queued),
            ("queued_tokens", "Tokens of the texts that wait.", now.queued_tokens),
            ("running_requests", "Requests under way, waiting ones included.", now.running),
            ("uptime_seconds", "Seconds since the start.", now.uptime),
        ):
            yield GaugeMetricFamily(f"limbert_{name}", text, value=float(value))
        size = GaugeMetricFamily(
            "limbert_size_in_use", "1 for the size that the server's policy uses.", labels=["size"]
        )
        for item in service.variants.variants:
            size.add_metric([item.name], float(item.name == now.variant))
        yield size
        refused = Counter("limbert_refused_requests", "Requests refused: no room, or no time.", registry=None)
        refused.inc(now.refused)
        yield from refused.collect()
        changes = Counter("limbert_size_changes", "How often the size in use changed.", registry=None)
        changes.inc(now.level_changes)
        yield from changes.collect()
        yield InfoMetricFamily("limbert_worker", "The process that counted.", value={"pid": str(os.getpid())})


REQUEST_OPTIONS = ("latency_budget_ms", "min_quality", "subnet", "policy")
CLIENT_CLOSED_REQUEST = 499  # the status in the log of a client that did not wait; nobody receives it


class ClientDisconnectedError(Exception):
    """The client has closed the connection; its rows are out of the queue."""


@dataclass(frozen=True)
class RequestHandler:
    """What a protocol needs of the server: the service that answers, and the counters."""

    service: Service
    metrics: ServerMetrics

    async def predict(
        self, request: Request, texts: Sequence[TextInput], *, options: RequestOptions, truncate: bool
    ) -> RequestOutput:
        """The service's answers, while the client waits for them.

        Raises:
            ServeError: as `Service.answer`.
            ClientGone: if the client has hung up; then nothing is computed for it any more.
        """
        answering = asyncio.ensure_future(self.service.predict(texts, options=options, truncate=truncate))
        gone = asyncio.ensure_future(_wait_for_disconnect(request.receive))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientDisconnectedError
            answers = answering.result()
        finally:
            answering.cancel()
            gone.cancel()
        self.metrics.observe_output(answers)
        return answers


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(value: Any, output: RequestOutput) -> Response:
    """The value as JSON, with the headers of `spent`."""
    return Response(to_json(value), headers=usage_headers(output), media_type="application/json")


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def usage_headers(output: RequestOutput) -> Mapping[str, str]:
    """The headers that say what answered, what it took and where the time went."""
    timing, rows = output.timing, output.outputs
    headers = {
        "x-limbert-size": variant_names(output),
        "x-limbert-queue-ms": f"{timing.queue * 1000:.3f}",
        "x-limbert-tokenization-ms": f"{timing.tokenization * 1000:.3f}",
        "x-limbert-inference-ms": f"{timing.inference * 1000:.3f}",
        "x-limbert-flops": str(sum(row.flops for row in rows)),
        "x-limbert-tokens": str(sum(row.tokens for row in rows)),
    }
    cut = sum(row.truncated for row in rows)
    return headers | {"x-limbert-truncated": str(cut)} if cut else headers


def variant_names(output: RequestOutput) -> str:
    """The names of the sizes that answered, each once, as a header can carry them."""
    return ",".join(quote(name, safe="+:;=@ ") for name in dict.fromkeys(row.variant for row in output.outputs))
