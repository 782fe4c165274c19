"""Prometheus metrics of one application, in a registry of its own.

Each worker process counts for itself and a scrape reaches one of them, named by ``limbert_worker_info``: sum over
``pid``, or run one worker per port where exact sums matter.
"""

import os
from collections import Counter as Counts
from collections.abc import Iterator
from functools import partial

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


class ServerMetrics(Collector):
    """Counters of requests and texts, and the state of a service, read at each scrape."""

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, CollectorRegistry()
        registry, histogram = self._registry, partial(Histogram, registry=self._registry, buckets=_BUCKETS)
        self._requests = Counter("limbert_requests", "HTTP requests.", ["protocol", "status"], registry=registry)
        self._duration = histogram(
            "limbert_request_duration_seconds", "From the first byte read to the last byte written.", ["protocol"]
        )
        self._texts = Counter("limbert_rows", "Texts completed, by variant.", ["size"], registry=registry)
        self._tokens = Counter("limbert_tokens", "Tokens of the completed texts.", registry=registry)
        self._flops = Counter("limbert_flops", "Floating-point operations for the completed texts.", registry=registry)
        self._truncated = Counter("limbert_truncated_rows", "Texts truncated to the maximum length.", registry=registry)
        self._stages = {
            "queue": histogram("limbert_queue_seconds", "Time in the queue of a request's last text."),
            "tokenization": histogram("limbert_tokenization_seconds", "Time for tokenisation of a request."),
            "inference": histogram("limbert_inference_seconds", "Time for the last batch of a request."),
        }
        registry.register(self)
        ProcessCollector(registry=registry)

    def observe_output(self, output: RequestOutput) -> None:
        """Count a completed request."""
        for stage, histogram in self._stages.items():
            histogram.observe(getattr(output.timing, stage))
        for variant, count in Counts(text.variant for text in output.outputs).items():
            self._texts.labels(variant).inc(count)
        self._truncated.inc(sum(text.truncated for text in output.outputs))
        self._tokens.inc(sum(text.tokens for text in output.outputs))
        self._flops.inc(sum(text.flops for text in output.outputs))

    def observe_request(self, protocol: str, *, status: int, seconds: float) -> None:
        """Count an HTTP request; status 499: the client disconnected."""
        self._requests.labels(protocol, str(status)).inc()
        self._duration.labels(protocol).observe(seconds)

    def response(self) -> Response:
        """All metrics in the text format."""
        return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering does not read the service."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The state of the service now."""
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
        in_use = {name: name == now.variant for name in service.variants.by_name}
        agreement = {name: now.agreeing[name] / count for name, count in now.compared.items()}
        for name, text, by_variant in (
            ("size_in_use", "1 for the variant in use by the policy.", in_use),
            ("shadow_agreement", "Fraction of the compared texts with the full model's labels.", agreement),
            ("shadow_rows", "Texts compared with the full model.", now.compared),
        ):
            family = GaugeMetricFamily(f"limbert_{name}", text, labels=["size"])
            for variant, value in by_variant.items():
                family.add_metric([variant], float(value))
            yield family
        yield CounterMetricFamily("limbert_refused_requests", "Requests refused by admission control.", now.refused)
        yield CounterMetricFamily("limbert_size_changes", "Changes of the variant in use.", now.level_changes)
        yield InfoMetricFamily("limbert_worker", "The worker process.", value={"pid": str(os.getpid())})
