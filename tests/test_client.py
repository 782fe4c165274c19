"""Requests, retries and errors of the client, against stub servers."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest

from limbert import Client
from limbert.errors import BusyError, ConfigError, RejectedError, UnreachableError

INFO = {"max_client_batch_size": 4, "task": "classification"}
Reply = tuple[int, dict[str, str], Any]  # status, headers, JSON


class Stub(ThreadingHTTPServer):
    """Server whose replies are those of a function; records the requests."""

    daemon_threads = True

    def __init__(self, reply: "Callable[[Stub, str, Any], Reply | None]") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.seen, self.connections = reply, [], 0
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    def process_request(self, request: Any, address: Any) -> None:
        self.connections += 1
        super().process_request(request, address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        value = json.loads(body) if body else None
        with self.server.lock:
            self.server.seen.append((self.path, value))
            self.server.headers.append(dict(self.headers))
        if self.path.endswith("/info"):
            reply: Reply | None = (200, {}, INFO)
        else:
            reply = self.server.reply(self.server, self.path, value)
        if reply is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers, content = reply
        sent = json.dumps(content).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def stub(reply: Callable[[Stub, str, Any], Reply | None]) -> Iterator[tuple[Stub, str]]:
    server = Stub(reply)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def echo(server: Stub, path: str, value: Any) -> Reply:
    """Predict each text as its label."""
    texts = [item if isinstance(item, str) else f"{item['text']}|{item['text_pair']}" for item in value["inputs"]]
    rows = [[{"label": text, "score": 0.9}, {"label": "other", "score": 0.1}] for text in texts]
    return 200, {"X-Limbert-Size": "0.5x1"}, rows


def test_batches_keep_order_and_connections() -> None:
    texts = [f"text {number} ü" for number in range(30)]
    with stub(echo) as (server, url), Client(url, in_flight=3) as client:
        predictions = client.predict(texts, pairs=[text.upper() for text in texts], subnet="0.5x1", latency_budget=0.05)
        assert [prediction.label for prediction in predictions] == [f"{text}|{text.upper()}" for text in texts]
        assert {prediction.subnet for prediction in predictions} == {"0.5x1"}
        assert predictions[0].scores == {predictions[0].label: 0.9, "other": 0.1}
        posted = [value for path, value in server.seen if path == "/"]
        assert sorted(len(value["inputs"]) for value in posted) == [2, 4, 4, 4, 4, 4, 4, 4]
        assert {json.dumps(value["parameters"]) for value in posted} == {
            '{"subnet": "0.5x1", "latency_budget_ms": 50.0}'
        }
        assert server.connections <= 3
        assert client.predict("one")[0].label == "one"
        assert client.predict([]) == []


def test_abstaining_predictions_have_no_label() -> None:
    def unsure(server: Stub, path: str, value: Any) -> Reply:
        below = value["parameters"]["abstain_below"]
        texts = [(text, len(text) / 10) for text in value["inputs"]]
        return 200, {}, [[{"label": text if score >= below else None, "score": score}] for text, score in texts]

    with stub(unsure) as (_, url), Client(url) as client:
        sure, silent = client.predict(["long", "a"], abstain_below=0.3)
        assert (sure.label, sure.score, sure.scores) == ("long", 0.4, {"long": 0.4})
        assert (silent.label, silent.score, silent.scores) == (None, 0.1, {})
        with pytest.raises(ConfigError, match="from 0 to 1"):
            client.predict("a", abstain_below=70)


def test_requests_run_concurrently_and_threads_share_a_client() -> None:
    running, peak, begun = 0, 0, 0
    three = threading.Barrier(3)

    def slow(server: Stub, path: str, value: Any) -> Reply:
        nonlocal running, peak, begun
        with server.lock:
            running, begun = running + 1, begun + 1
            peak, first = max(peak, running), begun <= 3
        if first:
            three.wait(timeout=60)
        time.sleep(0.02)
        with server.lock:
            running -= 1
        return echo(server, path, value)

    with stub(slow) as (_, url), Client(url, in_flight=3) as client:
        client.predict([str(number) for number in range(40)])
        assert peak == 3
        labels: dict[int, list[str | None]] = {}

        def work(thread: int) -> None:
            labels[thread] = [prediction.label for prediction in client.predict([f"{thread}-{n}" for n in range(9)])]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert labels == {thread: [f"{thread}-{n}" for n in range(9)] for thread in range(6)}


def test_busy_server_is_retried_after_its_delay() -> None:
    times: list[float] = []

    def busy_twice(server: Stub, path: str, value: Any) -> Reply:
        times.append(time.monotonic())
        if len(times) < 3:
            return 429, {"Retry-After": "1", "Retry-After-Ms": "60"}, {"error": "no room"}
        return echo(server, path, value)

    with stub(busy_twice) as (_, url):
        assert Client(url).predict("text")[0].label == "text"
        assert all(later - earlier >= 0.06 for earlier, later in pairwise(times))
        times.clear()
        with pytest.raises(BusyError, match="no room") as busy:
            Client(url, retry_timeout=0.05).predict("text")
        assert busy.value.retry_after == 0.06
        assert len(times) == 1


def test_dropped_connections_are_retried_three_times() -> None:
    drops = 2

    def drop(server: Stub, path: str, value: Any) -> Reply | None:
        nonlocal drops
        drops -= 1
        return None if drops >= 0 else echo(server, path, value)

    with stub(drop) as (_, url):
        assert Client(url).predict("text")[0].label == "text"
        drops = 100
        with pytest.raises(UnreachableError, match=url):
            Client(url).predict("text")
        assert drops == 96  # one on the kept connection, three on new ones


def test_connections_closed_by_the_server_are_replaced() -> None:
    with stub(echo) as (_, url):
        client = Client(url, in_flight=4)
        client.predict([str(number) for number in range(64)])
        idle = [*client._idle_connections]
        assert idle
        for connection in idle:  # as a server does after its keep-alive time
            connection.sock.shutdown(socket.SHUT_RDWR)
        assert client.predict("again")[0].label == "again"


def test_refusals_give_the_reason_in_one_line() -> None:
    def refuse(server: Stub, path: str, value: Any) -> Reply:
        return {"a": (422, {}, {"error": "subnet '9x9' is none", "error_type": "Validation"}), "b": (401, {}, {}),
                "c": (200, {}, {"no": "list"}), "d": (503, {}, {"error": "draining"})}[value["inputs"][0]]  # fmt: skip

    with stub(refuse) as (_, url), Client(url) as client:
        for text, status, reason in (("a", 422, "subnet '9x9'"), ("b", 401, "API key"), ("c", 200, "not a Limbert"),
                                   ("d", 503, "draining")):  # fmt: skip
            with pytest.raises(RejectedError, match=reason) as refused:
                client.predict(text)
            assert refused.value.status == status
            assert "\n" not in str(refused.value)


def test_unreachable_and_silent_servers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=f"{url} cannot be reached: Connection refused"):
            Client(url).info()
        assert not Client(url).is_healthy()
        taken.listen()
        start = time.monotonic()
        with pytest.raises(UnreachableError, match=f"{url} did not respond within 0.1 s"):
            Client(url, timeout=0.1).info()
        assert time.monotonic() - start < 5


def test_key_is_sent_and_url_path_kept() -> None:
    with stub(echo) as (server, url):
        client = Client(url + "/models/m/", api_key="schlüssel")
        client.predict("text")
        assert [path for path, _ in server.seen] == ["/models/m/info", "/models/m/"]
        assert server.headers[-1]["Authorization"].encode("latin-1").decode() == "Bearer schlüssel"
        assert "key" not in "".join(path for path, _ in server.seen)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:99999", "http://h/?key=1"])
def test_invalid_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="must be a URL such as"):
        Client(url)


def test_invalid_arguments_are_refused_before_sending() -> None:
    client = Client("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="1 pairs"):
        client.predict(["a", "b"], pairs=["c"])
    with pytest.raises(ConfigError, match="-1 s"):
        client.predict("a", latency_budget=-1)
    for options in ({"timeout": 0}, {"retry_timeout": -1}, {"in_flight": 0}, {"api_key": "a\nb"}):
        with pytest.raises(ConfigError):
            Client("http://host", **options)
