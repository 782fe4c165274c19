"""Invalid requests get one line that names the field and the right status, and no request gets a 5xx."""

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from tests.factories.runs import needs_encoder
from tests.factories.servers import make_run, opened, served

from limbert.serve.errors import UnavailableError
from limbert.serve.service import Service

pytestmark = needs_encoder
LIMIT = 20_000  # bytes of a body
TEXT = {"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["a"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("errors") / "tiny")


@pytest.fixture(scope="module")
def service(run: Path) -> Iterator[Service]:
    with opened(run, max_body=LIMIT, max_texts=8) as service:
        yield service


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with served(service) as address:
        yield address


def post(url: str, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(url, content=body, headers={"content-type": "application/json"} | headers)


def infer(**changes: object) -> dict[str, object]:
    return {"inputs": [TEXT | changes]}


HUGGING_FACE = [
    ({}, 422, "inputs is missing"),
    ({"inputs": None}, 422, "got null"),
    ({"inputs": 7}, 422, "got 7"),
    ({"inputs": True}, 422, "got true"),
    ({"inputs": []}, 422, "inputs must have at least 1 item; got an empty list"),
    ({"inputs": ["a", None]}, 422, "inputs[1]"),
    ({"inputs": [["a", "b"]]}, 422, "inputs[0]"),
    ({"inputs": {"text_pair": "a"}}, 422, "inputs.text is missing"),
    ({"inputs": {"text": "a", "text_pairs": "b"}}, 422, "'text_pairs'; did you mean 'text_pair'?"),
    ({"input": "a"}, 422, "did you mean 'inputs'?"),
    ({"inputs": "\ud83d"}, 422, "surrogate"),
    ({"inputs": ["a"] * 9}, 413, "9 texts; at most 8"),
    ({"inputs": "word " * 40, "parameters": {"truncation": False}}, 413, "tokens"),
    ({"inputs": "a", "parameters": []}, 422, "parameters must be an object"),
    ({"inputs": "a", "parameters": {"latency_budget": 5}}, 422, "did you mean 'latency_budget_ms'?"),
    ({"inputs": "a", "parameters": {"top_k": 0}}, 422, "got 0"),
    ({"inputs": "a", "parameters": {"top_k": 1.5}}, 422, "got 1.5"),
    ({"inputs": "a", "parameters": {"top_k": True}}, 422, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"function_to_apply": "softMax"}}, 422, "function_to_apply"),
    ({"inputs": "a", "parameters": {"truncation": "only_first"}}, 422, "only_first"),
    ({"inputs": "a", "parameters": {"truncation": 1}}, 422, "parameters.truncation"),
    ({"inputs": "a", "parameters": {"subnet": "9x9"}}, 422, "9x9"),
    ({"inputs": "a", "parameters": {"subnet": "\ud83d" * 900}}, 422, "..."),
    ({"inputs": "a", "parameters": {"subnet": "1x1", "policy": "static:1x1"}}, 422, "contradict"),
    ({"inputs": "a", "parameters": {"latency_budget_ms": -1}}, 422, "latency_budget_ms"),
    ({"inputs": "a", "parameters": {"latency_budget_ms": 1e-9}}, 429, ""),
    ([1, 2], 422, "the body must be an object"),
]
TEI = [
    ({"inputs": ""}, 400, "inputs is empty"),
    ({"inputs": ["", ""]}, 400, "inputs is empty"),
    ({"inputs": ["a", "b", "c"]}, 422, "inputs"),
    ({"inputs": ["a", None]}, 422, "inputs[1]"),
    ({"inputs": [[]]}, 422, "inputs[0]"),
    ({"inputs": [["a"], "b"]}, 422, "inputs[1]"),
    ({"inputs": [["a"]] * 9}, 413, "at most 8"),
    ({"inputs": "word " * 40}, 413, "tokens"),
    ({"inputs": "a", "truncate": "yes"}, 422, "truncate"),
    ({"inputs": "a", "raw_scores": 1}, 422, "raw_scores"),
    ({"inputs": "a", "truncation_direction": "Left"}, 422, "truncation_direction"),
]
OPEN_INFERENCE = [
    ({"inputs": []}, 400, "inputs"),
    ({"inputs": {}}, 400, "inputs"),
    (infer(name="INPUT"), 400, "inputs[0].name"),
    ({"inputs": [TEXT, TEXT]}, 400, "twice"),
    (infer(datatype="FP32"), 400, "datatype"),
    (infer(shape=[2]), 400, "its shape is [2]"),
    (infer(shape=[10**30]), 400, "shape"),
    (infer(shape=[True]), 400, "shape"),
    (infer(shape=[1, 2]), 400, "the shape of TEXT"),
    (infer(data=[3]), 400, "data[0]"),
    (infer(data="a"), 400, "data"),
    (infer(data=["\ud83d"]), 400, "JSON"),
    (infer(parameters={"shared_memory_region": "x"}), 400, "shared_memory_region"),
    (infer(parameters={"binary_data_size": 5}), 400, "0 bytes are left"),
    ({"inputs": [TEXT, TEXT | {"name": "TEXT_PAIR", "shape": [2], "data": ["a", "b"]}]}, 400, "TEXT_PAIR has 2 texts"),
    (infer() | {"id": 7}, 400, "id must"),
    (infer() | {"outputs": [{"name": "OUT"}]}, 400, "LABEL"),
    (infer() | {"outputs": [{"name": "SCORES", "parameters": {"classification": 4}}]}, 400, "at most 3"),
    (infer() | {"outputs": [{"name": "SCORES", "parameters": False}]}, 400, "must be an object"),
    (infer() | {"parameters": {"subnet": "9x9"}}, 400, "9x9"),
    (infer() | {"parameters": {"subnets": "1x1"}}, 400, "did you mean 'subnet'?"),
    (infer(shape=[9], data=["a"] * 9), 413, "at most 8"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (path, *case)
        for path, cases in (("/", HUGGING_FACE), ("/predict", TEI), ("/v2/models/tiny/infer", OPEN_INFERENCE))
        for case in cases
    ],
)
def test_invalid_values_are_named(url: str, path: str, body: object, status: int, message: str) -> None:
    answer = post(url + path, json.dumps(body).encode())
    said = answer.json()
    assert (answer.status_code, {*said}) == (status, {"error", "error_type"})
    assert message in said["error"]
    assert len(said["error"]) < 600
    assert "\n" not in said["error"]
    if status == 429:
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1


UNREADABLE = [
    (b"", 422),
    (b"{", 400),
    (b"\xff\xfe{\x00}\x00", 422),
    (b'{"inputs": "a\xff"}', 400),
    (b'{"inputs": "a", "parameters": {"min_quality": NaN}}', 422),
    (b'{"inputs": "a", "parameters": {"top_k": 1' + b"0" * 5000 + b"}}", 400),
    (b'{"inputs": "a", "parameters": {"min_quality": 1' + b"0" * 400 + b"}}", 422),
    (b'{"inputs": "a", "parameters": {"latency_budget_ms": 1e999}}', 422),
    (b'{"inputs": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400),
    (b'{"inputs": 1, "inputs": "the last value counts"}', 200),
    (b'{"inputs": "nul \\u0000 and \\ufffe"}', 200),
    (b"null", 422),
]


@pytest.mark.parametrize(("body", "status"), UNREADABLE)
def test_unreadable_bodies_are_client_errors(url: str, body: bytes, status: int) -> None:
    for path in ("/", "/models/tiny", "/predict", "/v2/models/tiny/infer"):
        answer = post(url + path, body)
        allowed = {status, 400} if path.startswith("/v2") else {status}
        assert answer.status_code in allowed, answer.text
        assert status != 400 or "JSON" in answer.text


def test_invalid_binary_tensors_are_refused(url: str) -> None:
    def ask(head: dict[str, object], binary: bytes, length: str | None = None) -> tuple[int, str]:
        text = json.dumps(head).encode()
        headers = {"Inference-Header-Content-Length": str(len(text)) if length is None else length}
        answer = post(f"{url}/v2/models/tiny/infer", text + binary, **headers)
        return answer.status_code, answer.json().get("error", "")

    def head(size: object) -> dict[str, object]:
        return {
            "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}]
        }

    assert ask(head(5), b"\x01\0\0\0a") == (200, "")
    for size, binary, message in (
        (5, b"\xff\xff\xff\xffa", "ends within a string"),
        (3, b"\x01\0\0", "ends within a length"),
        (5, b"\x01\0\0\0\xff", "not UTF-8"),
        (6, b"\x01\0\0\0a", "5 bytes are left"),
        (-1, b"", "binary_data_size"),
        (True, b"a", "binary_data_size"),
        (10, b"\x01\0\0\0a" * 2, "has 2 strings"),
        (5, b"\x01\0\0\0ab", "1 bytes after"),
    ):
        status, error = ask(head(size), binary)
        assert (status, message in error) == (400, True), error
    for length in ("-1", "x", "9" * 40, "1e3", ""):
        assert ask(head(5), b"\x01\0\0\0a", length)[0] == 400


def test_content_types_and_encodings(url: str) -> None:
    body = b'{"inputs": "a"}'
    assert httpx.post(url, content=body).status_code == 200  # no content type: JSON
    assert post(url, body, **{"content-type": "application/vnd.api+json; charset=utf-8"}).status_code == 200
    for refused in ("text/plain", "text/json+json", "application/octet-stream"):
        assert post(url, body, **{"content-type": refused}).status_code == 415
    assert post(url, gzip.compress(body), **{"content-encoding": "gzip"}).status_code == 200
    assert post(url, body, **{"content-encoding": "gzip"}).status_code == 400
    assert post(url, gzip.compress(body)[:-9], **{"content-encoding": "gzip"}).status_code == 400
    assert post(url, body, **{"content-encoding": "br"}).status_code == 415
    bomb = gzip.compress(b" " * 50 * LIMIT)
    assert len(bomb) < LIMIT
    assert post(url, bomb, **{"content-encoding": "gzip"}).status_code == 413


def test_body_size_is_limited(url: str) -> None:
    assert post(url, b" " * (LIMIT + 1)).status_code == 413
    assert httpx.post(url, content=iter([b" " * LIMIT, b" "])).status_code == 413  # without a content length
    whole = json.dumps({"inputs": "a"}).encode()
    assert post(url, whole + b" " * (LIMIT - len(whole))).status_code == 200


def test_body_time_is_limited(run: Path) -> None:
    with opened(run, body_timeout=0.5) as service, served(service) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        started, answer = time.monotonic(), b""
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{")
            while part := slow.recv(1000):  # until the server closes
                answer += part
        assert answer.startswith(b"HTTP/1.1 408")
        assert 0.4 < time.monotonic() - started < 60


def test_paths_and_methods(url: str) -> None:
    assert httpx.get(f"{url}/nothing").json() == {"error": "Not Found", "error_type": "Validation"}
    for path in ("/health", "/v2/health/live", "/v2/health/ready", "/metrics", "/info"):
        head = httpx.head(url + path)
        assert (head.status_code, head.content) == (200, b"")
    browser = httpx.get(url, headers={"accept": "text/html,*/*"})
    assert (browser.status_code, browser.headers["location"]) == (307, "playground")
    for path in ("/", "/predict", "/v2/models/tiny/infer"):
        refused = httpx.get(url + path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    for path in ("/models/bert/base", "/v2/models/bert/infer", "/v2/models/%00/infer"):
        assert post(url + path, b'{"inputs": "a"}').status_code == 404


def test_cors_origins_are_those_of_the_settings(run: Path, url: str) -> None:
    page = {"origin": "https://example.com"}
    preflight = page | {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    with opened(run, cors_origins=("https://example.com",), api_key="key") as service, served(service) as other:
        allowed = httpx.options(f"{other}/predict", headers=preflight)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://example.com")
        for headers in (page, page | {"x-api-key": "key"}):  # a refusal can be read, too
            response = httpx.post(f"{other}/predict", json={"inputs": "a"}, headers=headers)
            assert response.headers["access-control-allow-origin"] == "https://example.com"
        assert "x-limbert-size" in response.headers["access-control-expose-headers"].lower()
        strange = httpx.options(f"{other}/predict", headers=preflight | {"origin": "https://example.org"})
        assert "access-control-allow-origin" not in strange.headers
    assert "access-control-allow-origin" not in httpx.post(f"{url}/predict", json={"inputs": "a"}, headers=page).headers


def test_prometheus_metrics_count(url: str) -> None:
    before = httpx.get(f"{url}/metrics").text
    post(f"{url}/predict", b'{"inputs": [["a"], ["b"]], "parameters": {"subnet": "0.5x1"}}')
    after = httpx.get(f"{url}/metrics")
    assert after.headers["content-type"].startswith("text/plain; version=0.0.4")

    def value(text: str, line: str) -> float:
        return sum(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line + " "))

    for line, more in (
        ('limbert_requests_total{protocol="tei",status="200"}', 1),
        ('limbert_rows_total{size="0.5x1"}', 2),
        ("limbert_inference_seconds_count", 1),
        ("limbert_queue_seconds_count", 1),
    ):
        assert value(after.text, line) == value(before, line) + more
    assert value(after.text, 'limbert_size_in_use{size="1x1"}') == 1
    assert value(after.text, "limbert_healthy") == 1


def test_disconnect_cancels_the_request(url: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    begun, ended = threading.Event(), threading.Event()

    async def never(*texts: object, **options: object) -> None:
        begun.set()
        try:
            await asyncio.sleep(300)
        except asyncio.CancelledError:
            ended.set()
            raise

    monkeypatch.setattr(service, "predict", never)
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{"inputs": "a"}')
        assert begun.wait(60)
    assert ended.wait(60)


def test_unavailable_server_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*texts: object, **options: object) -> None:
        raise UnavailableError("the compute thread has died")

    with opened(run) as service, served(service) as url:
        monkeypatch.setattr(type(service), "healthy", property(lambda self: False), raising=False)
        monkeypatch.setattr(service, "predict", down)
        for path in ("/health", "/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
            assert httpx.get(url + path).status_code == 503
        for path in ("/", "/predict"):
            assert post(url + path, b'{"inputs": "a"}').json()["error_type"] == "Unhealthy"
        assert post(f"{url}/v2/models/tiny/infer", json.dumps(infer()).encode()).status_code == 503


def test_outputs_that_are_not_finite_are_424(url: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*texts: object, **options: object) -> SimpleNamespace:
        return SimpleNamespace(
            outputs=(
                SimpleNamespace(logits=(float("nan"), 0.0, 0.0), variant="1x1", tokens=1, truncated=False, flops=1),
            ),
            timing=SimpleNamespace(tokenization=0.0, queue=0.0, inference=0.0),
        )

    monkeypatch.setattr(service, "predict", broken)
    for path, body in (("/", {"inputs": "a"}), ("/predict", {"inputs": "a"}), ("/v2/models/tiny/infer", infer())):
        answer = post(url + path, json.dumps(body).encode())
        assert (answer.status_code, answer.json()["error_type"]) == (424, "Backend")


def test_internal_error_is_a_counted_500(url: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*texts: object, **options: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(service, "predict", broken)
    answer = post(url, b'{"inputs": "a"}')
    assert (answer.status_code, answer.json()["error_type"]) == (500, "Backend")
    assert "secret" not in answer.text
    assert 'limbert_requests_total{protocol="huggingface",status="500"} 1.0' in httpx.get(f"{url}/metrics").text


@pytest.mark.slow
def test_openapi_document_holds(url: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(FUZZ)
    arguments = ["--max-examples", "100", "--seed", "7", "--generation-deterministic", "--no-color"]
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "12 selected" in done.stdout


FUZZ = """
[phases.stateful]
enabled = false
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "404", "405", "406", "413", "415", "422", "429"]
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "429"]
[[operations]]
include-operation-id = "oip_infer"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "429"]
"""  # a schema cannot say that data has as many strings as its shape
