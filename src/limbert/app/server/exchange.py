"""One request to the service and its answer back: what all protocols share."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from limbert.serve.metrics import Metrics
from limbert.serve.service import Answers, Service, Text
from limbert.serve.wish import Wish

WISHES = ("latency_budget_ms", "min_quality", "subnet", "policy")
GONE = 499  # the status in the log of a client that did not wait; nobody receives it


class ClientGone(Exception):
    """The client has closed the connection; its rows are out of the queue."""


@dataclass(frozen=True)
class Exchange:
    """What a protocol needs of the server: the service that answers, and the counters."""

    service: Service
    metrics: Metrics

    async def ask(self, request: Request, texts: Sequence[Text], *, wish: Wish, truncate: bool) -> Answers:
        """The service's answers, while the client waits for them.

        Raises:
            ServeError: as `Service.answer`.
            ClientGone: if the client has hung up; then nothing is computed for it any more.
        """
        answering = asyncio.ensure_future(self.service.answer(texts, wish=wish, truncate=truncate))
        gone = asyncio.ensure_future(_disconnected(request.receive))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientGone
            answers = answering.result()
        finally:
            answering.cancel()
            gone.cancel()
        self.metrics.count(answers)
        return answers


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(value: Any, answers: Answers) -> Response:
    """The value as JSON, with the headers of `spent`."""
    return Response(to_json(value), headers=spent(answers), media_type="application/json")


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def spent(answers: Answers) -> Mapping[str, str]:
    """The headers that say what answered, what it took and where the time went."""
    timing, rows = answers.timing, answers.rows
    headers = {
        "x-limbert-size": sizes(answers),
        "x-limbert-queue-ms": f"{timing.queue * 1000:.3f}",
        "x-limbert-tokenization-ms": f"{timing.tokenisation * 1000:.3f}",
        "x-limbert-inference-ms": f"{timing.inference * 1000:.3f}",
        "x-limbert-flops": str(sum(row.flops for row in rows)),
        "x-limbert-tokens": str(sum(row.tokens for row in rows)),
    }
    cut = sum(row.truncated for row in rows)
    return headers | {"x-limbert-truncated": str(cut)} if cut else headers


def sizes(answers: Answers) -> str:
    """The names of the sizes that answered, each once, as a header can carry them."""
    return ",".join(quote(name, safe="+:;=@ ") for name in dict.fromkeys(row.size for row in answers.rows))
