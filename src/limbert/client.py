"""Thread-safe HTTP client of ``limbert serve``; standard library only."""

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

from limbert.deprecation import RenamedAttribute, renamed_arguments, renamed_module_attributes
from limbert.errors import BusyError, ConfigError, RejectedError, UnreachableError

_MAX_ATTEMPTS = 3  # if the connection drops; requests are idempotent
_NO_RETRY_ERRORS = (ConnectionRefusedError, socket.gaierror)  # no server there: retrying at once does not help


@dataclass(frozen=True)
class ServerPrediction:
    """Prediction for one text.

    Attributes:
        label: the most probable class; None for regression, and where the model abstains. For multi-label tasks see
            ``scores``.
        score: the highest probability, or the predicted value for regression.
        scores: by label, in descending order, of all classes or the ``top_k`` best; empty where there is no label.
        subnet: the sub-network that ran, such as ``0.5x0.75``; None if the request ran on several.
    """

    label: str | None
    score: float
    scores: Mapping[str, float]
    subnet: str | None

    size = RenamedAttribute("subnet")


__getattr__ = renamed_module_attributes(globals(), {"Prediction": "ServerPrediction"})


@dataclass(frozen=True)
class _Response:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Client:
    """Client of a Limbert server; keeps connections open. Safe to use from many threads.

    Args:
        url: of the server, such as ``http://127.0.0.1:8080``, with an optional path.
        api_key: sent as a bearer token.
        timeout: seconds to wait for a connection or for data.
        retry_timeout: total seconds in which a request is retried while the server is overloaded.
        in_flight: concurrent requests of one `predict` call.

    Raises:
        ConfigError: if the URL is invalid or a number is out of range.
    """

    @renamed_arguments(patience="retry_timeout")
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
                f"timeout, retry_timeout and in_flight are {timeout:g}, {retry_timeout:g} and {in_flight}; "
                "they must be above 0, 0 or more, and at least 1"
            )
        if api_key is not None and not (api_key.isprintable() and api_key.strip()):
            raise ConfigError("the API key is empty or has characters that are not allowed in a header")
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": b"application/json", "Accept": b"application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}".encode()
        self._timeout, self._retry_timeout, self._in_flight = timeout, retry_timeout, in_flight
        self._idle_connections: deque[HTTPConnection] = deque()  # append and pop are atomic

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections. The client can still be used: it opens new ones."""
        while self._idle_connections:
            self._idle_connections.pop().close()

    def is_healthy(self) -> bool:
        """Whether the server responds and is healthy; raises no exception."""
        try:
            return self._send("GET", "/health", None).status == 200
        except UnreachableError:
            return False

    def info(self) -> dict[str, Any]:
        """Information about the server: its model, limits and sub-networks.

        Raises:
            RemoteError: if the request fails.
        """
        value = self._parse_json(self._send_with_retry("GET", "/info"))
        if not isinstance(value, dict):
            raise RejectedError(f"{self.url} is not a Limbert server: /info is not a JSON object", status=200)
        return value

    @cached_property
    def _cached_info(self) -> Mapping[str, Any]:
        return self.info()

    @property
    def task_type(self) -> str:
        """Task type of the server's model, such as ``classification``."""
        return str(self._cached_info.get("task", "classification"))

    @property
    def max_batch_size(self) -> int:
        """Maximum number of texts per request."""
        return max(1, int(self._cached_info.get("max_client_batch_size", 1)))

    healthy = RenamedAttribute("is_healthy")
    kind = RenamedAttribute("task_type")
    max_batch = RenamedAttribute("max_batch_size")

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
        abstain_below: float | None = None,
    ) -> list[ServerPrediction]:
        """Predictions in the order of the texts, in requests of at most `max_batch_size` texts.

        Args:
            texts: one or many.
            pairs: the second text of each, for tasks on pairs.
            subnet: the sub-network to run, such as ``0.5x0.75`` or the name of a searched one.
            policy: an operating point such as ``balanced``, or ``static:0.5x0.75``.
            latency_budget: seconds from a request's arrival at the server to its response.
            min_quality: lowest quality of a sub-network that may run, in the unit of the metric, such as 0.85.
            top_k: number of best scores to return.
            abstain_below: classification: probability below which a prediction has no label.

        Raises:
            ConfigError: if the numbers of pairs and texts differ, or a number is out of range.
            RemoteError: if the server cannot be reached, is overloaded for longer than ``retry_timeout``, or refuses.
        """
        first = [texts] if isinstance(texts, str) else list(texts)
        second = [pairs] if isinstance(pairs, str) else None if pairs is None else list(pairs)
        if second is not None and len(second) != len(first):
            raise ConfigError(f"{len(second)} pairs for {len(first)} texts; each text needs one")
        if abstain_below is not None and not 0 <= abstain_below <= 1:
            raise ConfigError(f"abstain_below is {abstain_below:g}; it must be a probability, from 0 to 1")
        if latency_budget is not None and latency_budget <= 0:
            raise ConfigError(f"latency budget is {latency_budget:g} s; it must be more than 0")
        options = {
            "subnet": subnet,
            "policy": policy,
            "latency_budget_ms": None if latency_budget is None else 1000 * latency_budget,
            "min_quality": min_quality,
            "top_k": top_k,
            "abstain_below": abstain_below,
        }
        parameters = {name: value for name, value in options.items() if value is not None}
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
            results = threads.map(lambda batch: self._predict_batch(batch, parameters), batches)
            return [prediction for result in results for prediction in result]

    def _predict_batch(self, inputs: list[Any], parameters: Mapping[str, Any]) -> list[ServerPrediction]:
        response = self._send_with_retry("POST", "/", {"inputs": inputs, "parameters": parameters})
        rows = self._parse_json(response)
        if not isinstance(rows, list) or len(rows) != len(inputs):
            raise RejectedError(
                f"{self.url} is not a Limbert server: expected {len(inputs)} predictions", status=response.status
            )
        subnets = response.headers.get("x-limbert-size", "")
        subnet = subnets if subnets and "," not in subnets else None
        return [self._parse_prediction(row, subnet) for row in rows]

    def _parse_prediction(self, class_scores: Any, subnet: str | None) -> ServerPrediction:
        scores = {item["label"]: item["score"] for item in class_scores}
        label, score = next(iter(scores.items()))
        has_label = label is not None and self.task_type != "regression"
        return (
            ServerPrediction(label, score, scores, subnet) if has_label else ServerPrediction(None, score, {}, subnet)
        )

    def _send_with_retry(self, method: str, path: str, payload: Any = None) -> _Response:
        """Send a request, and retry it while the server is overloaded (429), for at most ``retry_timeout``."""
        body = None if payload is None else json.dumps(payload).encode()
        deadline = time.monotonic() + self._retry_timeout
        while True:
            response = self._send(method, path, body)
            if response.status == 200:
                return response
            if response.status != 429:
                raise self._rejected_error(response)
            wait = _retry_after(response.headers)
            pause = wait * random.uniform(1.0, 1.25)  # jitter: clients refused together must not return together
            if time.monotonic() + pause > deadline:
                reason = _error_message(response) or "it refused the request"
                raise BusyError(f"{self.url} is overloaded: {reason}; try again in {wait:g} s", retry_after=wait)
            time.sleep(pause)

    def _send(self, method: str, path: str, body: bytes | None) -> _Response:
        """Send a request, on a new connection if the server has closed the idle one.

        Raises:
            UnreachableError: naming the URL.
        """
        attempts = 0
        while True:
            connection, is_new = self._get_connection()
            attempts += is_new
            try:
                return self._send_over(connection, method, path, body)
            except TimeoutError:
                connection.close()
                raise UnreachableError(f"{self.url} did not respond within {self._timeout:g} s") from None
            except (HTTPException, OSError) as error:
                connection.close()
                if is_new and (attempts == _MAX_ATTEMPTS or isinstance(error, _NO_RETRY_ERRORS)):
                    reason = (
                        (error.strerror if isinstance(error, OSError) else None) or str(error) or "not an HTTP server"
                    )
                    raise UnreachableError(f"{self.url} cannot be reached: {reason}") from None

    def _get_connection(self) -> tuple[HTTPConnection, bool]:
        """A connection, and whether it is new: the server may have closed an idle one."""
        try:
            return self._idle_connections.pop(), False
        except IndexError:
            connection_class = HTTPSConnection if self._secure else HTTPConnection
            return connection_class(self._host, self._port, timeout=self._timeout), True

    def _send_over(self, connection: HTTPConnection, method: str, path: str, body: bytes | None) -> _Response:
        try:
            connection.request(method, self._path + path, body, self._headers)
        except BrokenPipeError:
            if connection.sock is None:
                raise
            # the server may have refused the body before reading all of it: read its response
        response = connection.getresponse()
        headers = {name.lower(): text for name, text in response.getheaders()}
        result = _Response(response.status, headers, response.read())
        if response.will_close:
            connection.close()
        else:
            self._idle_connections.append(connection)
        return result

    def _parse_json(self, response: _Response) -> Any:
        try:
            return json.loads(response.body)
        except ValueError:
            raise RejectedError(
                f"{self.url} is not a Limbert server: the response is not JSON", status=response.status
            ) from None

    def _rejected_error(self, response: _Response) -> RejectedError:
        if response.status in (401, 403):
            return RejectedError(f"{self.url} asks for an API key; the one given is not valid", status=response.status)
        reason = _error_message(response) or "no reason given"
        return RejectedError(f"{self.url} refused ({response.status}): {reason}", status=response.status)


def _parse_url(url: str) -> tuple[bool, str, int | None, str]:
    """Whether the URL is https, its host, its port (None: default) and its path."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment):
            return parts.scheme == "https", parts.hostname, parts.port, parts.path.rstrip("/")
    except ValueError:
        pass
    raise ConfigError(f"server is {url!r}; it must be a URL such as http://127.0.0.1:8080")


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait before retrying, from the headers; 1 if they do not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.001, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return 1.0


def _error_message(response: _Response) -> str:
    """Error message in the response; empty if there is none."""
    try:
        value = json.loads(response.body)
    except ValueError:
        return ""
    message = value.get("error") or value.get("detail") if isinstance(value, dict) else None
    return message if isinstance(message, str) else ""
