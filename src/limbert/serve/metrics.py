"""Prometheus metrics of one application, in a registry of its own.

Each worker process counts for itself and a scrape reaches one of them, named by ``limbert_worker_info``: sum over
``pid``, or run one worker per port where exact sums matter.
"""

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from limbert.serve.runner import RequestOutput
from limbert.serve.service import Service

_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)  # seconds


class ServerMetrics:
    """Counters of requests and texts, and gauges that read a service at each scrape."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("limbert_requests", "HTTP requests.", ["protocol", "status"], registry=registry)
        self._duration = Histogram(
            "limbert_request_duration_seconds", "From the first byte read to the last byte written.", ["protocol"],
            registry=registry, buckets=_BUCKETS,
        )  # fmt: skip
        self._texts = Counter("limbert_rows", "Texts completed, by variant.", ["size"], registry=registry)
        self._tokens = Counter("limbert_tokens", "Tokens of the completed texts.", registry=registry)
        self._flops = Counter("limbert_flops", "Floating-point operations for the completed texts.", registry=registry)
        self._truncated = Counter("limbert_truncated_rows", "Texts truncated to the maximum length.", registry=registry)
        self._stages = {
            stage: Histogram(f"limbert_{stage}_seconds", text, registry=registry, buckets=_BUCKETS)
            for stage, text in (
                ("queue", "Time in the queue of a request's last text."),
                ("tokenization", "Time for tokenisation of a request."),
                ("inference", "Time for the last batch of a request."),
            )
        }
        registry.register(_ServiceCollector(service))
        ProcessCollector(registry=registry)

    def observe_output(self, output: RequestOutput) -> None:
        """Count a completed request."""
        for stage, histogram in self._stages.items():
            histogram.observe(getattr(output.timing, stage))
        for text in output.outputs:
            self._texts.labels(text.variant).inc()
            self._truncated.inc(text.truncated)
        self._tokens.inc(sum(text.tokens for text in output.outputs))
        self._flops.inc(sum(text.flops for text in output.outputs))

    def observe_request(self, protocol: str, *, status: int, seconds: float) -> None:
        """Count an HTTP request; status 499: the client disconnected."""
        self._requests.labels(protocol, str(status)).inc()
        self._duration.labels(protocol).observe(seconds)

    def response(self) -> Response:
        """All metrics in the text format."""
        return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


class _ServiceCollector(Collector):
    """State of the service, read once per scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering does not read the service."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        service, now = self._service, self._service.snapshot()
        for name, text, value in (
            ("healthy", "1 unless inference has failed.", service.healthy),
            ("ready", "1 while requests are accepted.", service.ready),
            ("queued_rows", "Queued texts.", now.queued),
            ("queued_tokens", "Tokens of the queued texts.", now.queued_tokens),
            ("running_requests", "Requests in progress, queued ones included.", now.running),
            ("uptime_seconds", "Seconds since the start.", now.uptime),
        ):
            yield GaugeMetricFamily(f"limbert_{name}", text, value=float(value))
        in_use = GaugeMetricFamily("limbert_size_in_use", "1 for the variant in use by the policy.", labels=["size"])
        for name in service.variants.by_name:
            in_use.add_metric([name], float(name == now.variant))
        yield in_use
        yield CounterMetricFamily("limbert_refused_requests", "Requests refused by admission control.", now.refused)
        yield CounterMetricFamily("limbert_size_changes", "Changes of the variant in use.", now.level_changes)
        yield InfoMetricFamily("limbert_worker", "The worker process.", value={"pid": str(os.getpid())})
