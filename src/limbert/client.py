"""A client of ``limbert serve``: answers for texts over HTTP. Standard library only; safe from many threads."""

import json
import random
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from limbert.errors import BusyError, ConfigError, RejectedError, UnreachableError

_MAX_ATTEMPTS = 3  # of a request whose connection drops: asking again changes nothing on the server
_NO_RETRY_ERRORS = (ConnectionRefusedError, socket.gaierror)  # no server there: trying again at once is of no use


@dataclass(frozen=True)
class ServerPrediction:
    """One answer of a server.

    Attributes:
        label: the most probable class; None for regression. Of a multi-label task see ``scores``.
        score: its probability, or the predicted value for regression.
        scores: of all classes (of the best with ``top_k``), by label, falling; empty for regression.
        size: the size that answered, such as ``0.5x0.75``; None where several answered the request that it was in.
    """

    label: str | None
    score: float
    scores: Mapping[str, float]
    subnet: str | None


@dataclass(frozen=True)
class _Response:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Client:
    """Asks a server for answers, over connections that stay open.

    Args:
        url: where it is, such as ``http://127.0.0.1:8080``; a path in it is kept.
        api_key: sent as a header, for a server that asks for one.
        timeout: seconds without a sign of the server after which a request is given up.
        patience: seconds in all that a request waits and comes again where the server is too busy for it.
        in_flight: requests that one `predict` has under way at once.

    Raises:
        ConfigError: for a URL that is none, or a number out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retry_timeout: float = 10.0,
        in_flight: int = 4,
    ) -> None:
        self._secure, self._host, self._port, self._path = _parse_url(url)
        if timeout <= 0 or retry_timeout < 0 or in_flight < 1:
            raise ConfigError(
                f"timeout, patience and in_flight are {timeout:g}, {retry_timeout:g} and {in_flight}; "
                "they must be above 0, 0 or more, and at least 1"
            )
        if api_key is not None and not (api_key.isprintable() and api_key.strip()):
            raise ConfigError("the API key is empty or has characters that cannot be sent as a header")
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": b"application/json", "Accept": b"application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}".encode()
        self._timeout, self._retry_timeout, self._in_flight = timeout, retry_timeout, in_flight
        self._idle_connections: deque[HTTPConnection] = (
            deque()
        )  # open connections nobody uses; append and pop are atomic

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are open; the client can still be used, and opens others."""
        while self._idle_connections:
            self._idle_connections.pop().close()

    def is_healthy(self) -> bool:
        """Whether the server is there and answers; never an exception."""
        try:
            return self._send("GET", "/health", None).status == 200
        except UnreachableError:
            return False

    def info(self) -> dict[str, Any]:
        """What the server says of itself: its model, its limits, its sizes.

        Raises:
            RemoteError: if it cannot be asked.
        """
        value = self._parse_json(self._send_with_retry("GET", "/info"))
        if not isinstance(value, dict):
            raise RejectedError(f"{self.url} is no Limbert server: its /info is no object", status=200)
        return value

    @cached_property
    def _cached_info(self) -> Mapping[str, Any]:
        return self.info()

    @property
    def task_type(self) -> str:
        """The kind of task that the server's model answers, such as ``classification``."""
        return str(self._cached_info.get("task", "classification"))

    @property
    def max_batch_size(self) -> int:
        """Texts that one request may carry."""
        return max(1, int(self._cached_info.get("max_client_batch_size", 1)))

    def predict(
        self,
        texts: str | Sequence[str],
        *,
        pairs: str | Sequence[str] | None = None,
        subnet: str | None = None,
        policy: str | None = None,
        latency_budget: float | None = None,
        min_quality: float | None = None,
        top_k: int | None = None,
    ) -> list[ServerPrediction]:
        """Answers in the order of the texts, asked for in requests of at most `max_batch`.

        Args:
            texts: one or many.
            pairs: the second text of each, where the task has pairs.
            subnet: the size that answers, such as ``0.5x0.75`` or a found name.
            policy: an operating point such as ``balanced``, or ``static:0.5x0.75``.
            latency_budget: seconds from a request's arrival at the server to its answer.
            min_quality: no size below this quality answers, in the metric's own unit such as 0.85.
            top_k: only the best scores, this many.

        Raises:
            ConfigError: for another number of pairs than texts, or numbers out of range.
            RemoteError: if the server cannot be reached, is too busy for longer than ``patience``, or refuses.
        """
        first = [texts] if isinstance(texts, str) else list(texts)
        second = [pairs] if isinstance(pairs, str) else None if pairs is None else list(pairs)
        if second is not None and len(second) != len(first):
            raise ConfigError(f"{len(second)} pairs for {len(first)} texts; each text needs one")
        if latency_budget is not None and latency_budget <= 0:
            raise ConfigError(f"latency budget is {latency_budget:g} s; it must be more than 0")
        wish = {
            "subnet": subnet,
            "policy": policy,
            "latency_budget_ms": None if latency_budget is None else 1000 * latency_budget,
            "min_quality": min_quality,
            "top_k": top_k,
        }
        parameters = {name: value for name, value in wish.items() if value is not None}
        inputs: list[Any] = (
            first
            if second is None
            else [{"text": text, "text_pair": pair} for text, pair in zip(first, second, strict=True)]
        )
        if not inputs:
            return []
        size = self.max_batch_size
        batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        if len(batches) == 1:
            return self._predict_batch(batches[0], parameters)
        with ThreadPoolExecutor(min(self._in_flight, len(batches)), "limbert-client") as threads:
            answered = threads.map(lambda batch: self._predict_batch(batch, parameters), batches)
            return [prediction for part in answered for prediction in part]

    def _predict_batch(self, inputs: list[Any], parameters: Mapping[str, Any]) -> list[ServerPrediction]:
        reply = self._send_with_retry("POST", "/", {"inputs": inputs, "parameters": parameters})
        rows = self._parse_json(reply)
        if not isinstance(rows, list) or len(rows) != len(inputs):
            raise RejectedError(f"{self.url} is no Limbert server: it did not answer every text", status=reply.status)
        sizes = reply.headers.get("x-limbert-size", "")
        size = sizes if sizes and "," not in sizes else None
        return [_parse_prediction(row, is_regression=self.task_type == "regression", subnet=size) for row in rows]

    def _send_with_retry(self, method: str, path: str, payload: Any = None) -> _Response:
        """One request; it waits and comes again while the server is too busy and patience lasts."""
        body = None if payload is None else json.dumps(payload).encode()
        until = time.monotonic() + self._retry_timeout
        while True:
            reply = self._send(method, path, body)
            if reply.status == 200:
                return reply
            if reply.status != 429:
                raise self._rejected_error(reply)
            wait = _retry_after(reply.headers)
            pause = wait * random.uniform(1.0, 1.25)  # so that those refused together do not come back together
            if time.monotonic() + pause > until:
                raise BusyError(
                    f"{self.url} is too busy: {_error_message(reply) or 'it refused the request'}; try again in {wait:g} s",
                    retry_after=wait,
                )
            time.sleep(pause)

    def _send(self, method: str, path: str, body: bytes | None) -> _Response:
        """One request and its reply; on a new connection where the old one turns out to be closed.

        Raises:
            UnreachableError: naming the URL.
        """
        tries = 0
        while True:
            connection, fresh = self._get_connection()
            tries += fresh
            try:
                return self._send_over(connection, method, path, body)
            except TimeoutError:
                connection.close()
                raise UnreachableError(f"{self.url} did not answer within {self._timeout:g} s") from None
            except (HTTPException, OSError) as error:
                connection.close()
                if fresh and (tries == _MAX_ATTEMPTS or isinstance(error, _NO_RETRY_ERRORS)):
                    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "no HTTP there"
                    raise UnreachableError(f"{self.url} cannot be reached: {reason}") from None

    def _get_connection(self) -> tuple[HTTPConnection, bool]:
        """A connection, and whether it is a new one: an idle one may have been closed by the server meanwhile."""
        try:
            return self._idle_connections.pop(), False
        except IndexError:
            kind = HTTPSConnection if self._secure else HTTPConnection
            return kind(self._host, self._port, timeout=self._timeout), True

    def _send_over(self, connection: HTTPConnection, method: str, path: str, body: bytes | None) -> _Response:
        try:
            connection.request(method, self._path + path, body, self._headers)
        except BrokenPipeError:
            if connection.sock is None:
                raise
            # else the server may have refused the body before it was sent to its end: its answer is there to read
        response = connection.getresponse()
        reply = _Response(
            response.status, {name.lower(): text for name, text in response.getheaders()}, response.read()
        )
        if response.will_close:
            connection.close()
        else:
            self._idle_connections.append(connection)
        return reply

    def _parse_json(self, response: _Response) -> Any:
        try:
            return json.loads(response.body)
        except ValueError:
            raise RejectedError(
                f"{self.url} is no Limbert server: it answers no JSON", status=response.status
            ) from None

    def _rejected_error(self, response: _Response) -> RejectedError:
        if response.status in (401, 403):
            return RejectedError(
                f"{self.url} asks for an API key and does not know the one given", status=response.status
            )
        said = _error_message(response) or "without a reason"
        return RejectedError(f"{self.url} refused ({response.status}): {said}", status=response.status)


def _parse_url(url: str) -> tuple[bool, str, int | None, str]:
    """Whether the URL is secure, its host, its port (None: the usual one) and its path."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment):
            return parts.scheme == "https", parts.hostname, parts.port, parts.path.rstrip("/")
    except ValueError:
        pass
    raise ConfigError(f"server is {url!r}; it must be a URL such as http://127.0.0.1:8080")


def _parse_prediction(class_scores: Any, *, is_regression: bool, subnet: str | None) -> ServerPrediction:
    scores = {item["label"]: item["score"] for item in class_scores}
    label, score = next(iter(scores.items()))
    return (
        ServerPrediction(None, score, {}, subnet) if is_regression else ServerPrediction(label, score, scores, subnet)
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait; 1 where it does not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.001, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return 1.0


def _error_message(response: _Response) -> str:
    """The one line that the server gives with a refusal; empty where it gives none."""
    try:
        value = json.loads(response.body)
    except ValueError:
        return ""
    said = value.get("error") or value.get("detail") if isinstance(value, dict) else None
    return said if isinstance(said, str) else ""
