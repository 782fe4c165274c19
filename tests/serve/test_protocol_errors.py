"""What is wrong with a request is said in one line with the right status, and nothing that comes in ends in a 5xx."""

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
LIMIT = 20_000  # bytes a body may have here
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
    ({}, 422, "inputs is null"),
    ({"inputs": None}, 422, "inputs is null"),
    ({"inputs": 7}, 422, "inputs is a number"),
    ({"inputs": True}, 422, "inputs is a boolean"),
    ({"inputs": []}, 422, "inputs is an empty list"),
    ({"inputs": ["a", None]}, 422, "inputs[1] is null"),
    ({"inputs": [["a", "b"]]}, 422, "inputs[0] is a list"),
    ({"inputs": {"text_pair": "a"}}, 422, "inputs.text is null"),
    ({"inputs": {"text": "a", "pair": "b"}}, 422, "it may have text and text_pair"),
    ({"inputs": "\ud83d"}, 422, "lone surrogate"),
    ({"inputs": ["a"] * 9}, 413, "9 texts; at most 8"),
    ({"inputs": "word " * 40, "parameters": {"truncation": False}}, 413, "tokens"),
    ({"inputs": "a", "parameters": []}, 422, "parameters is a list"),
    ({"inputs": "a", "parameters": {"latency_budget": 5}}, 422, "parameters has 'latency_budget'"),
    ({"inputs": "a", "parameters": {"top_k": 0}}, 422, "top_k is 0"),
    ({"inputs": "a", "parameters": {"top_k": 1.5}}, 422, "top_k is 1.5"),
    ({"inputs": "a", "parameters": {"top_k": True}}, 422, "top_k is a boolean"),
    ({"inputs": "a", "parameters": {"function_to_apply": "softMax"}}, 422, "softmax, sigmoid, none"),
    ({"inputs": "a", "parameters": {"truncation": "only_first"}}, 422, "only_first"),
    ({"inputs": "a", "parameters": {"truncation": 1}}, 422, "truncation is a number"),
    ({"inputs": "a", "parameters": {"subnet": "9x9"}}, 422, "9x9"),
    ({"inputs": "a", "parameters": {"subnet": "\ud83d" * 900}}, 422, "..."),
    ({"inputs": "a", "parameters": {"subnet": "1x1", "policy": "static:1x1"}}, 422, "contradict"),
    ({"inputs": "a", "parameters": {"latency_budget_ms": -1}}, 422, "latency_budget_ms"),
    ({"inputs": "a", "parameters": {"latency_budget_ms": 1e-9}}, 429, ""),
    ([1, 2], 422, "the body is a list"),
]
TEI = [
    ({"inputs": ""}, 400, "inputs is empty"),
    ({"inputs": ["", ""]}, 400, "inputs is empty"),
    ({"inputs": ["a", "b", "c"]}, 422, "inputs has 3 strings"),
    ({"inputs": ["a", None]}, 422, "inputs[1] is null"),
    ({"inputs": [[]]}, 422, "inputs[0] has 0 strings"),
    ({"inputs": [["a"], "b"]}, 422, "inputs[1] is a string"),
    ({"inputs": [["a"]] * 9}, 413, "at most 8"),
    ({"inputs": "word " * 40}, 413, "tokens"),
    ({"inputs": "a", "truncate": "yes"}, 422, "truncate is a string"),
    ({"inputs": "a", "raw_scores": 1}, 422, "raw_scores is a number"),
    ({"inputs": "a", "truncation_direction": "Left"}, 422, "this server cuts at the end"),
]
OPEN_INFERENCE = [
    ({"inputs": []}, 400, "inputs lack TEXT"),
    ({"inputs": {}}, 400, "inputs must be a list"),
    (infer(name="INPUT"), 400, "inputs are TEXT"),
    ({"inputs": [TEXT, TEXT]}, 400, "each once"),
    (infer(datatype="FP32"), 400, "must be BYTES"),
    (infer(shape=[2]), 400, "its shape says 2"),
    (infer(shape=[10**30]), 400, "has 1 strings"),
    (infer(shape=[True]), 400, "the shape of TEXT"),
    (infer(shape=[1, 2]), 400, "the shape of TEXT"),
    (infer(data=[3]), 400, "data of TEXT has a number"),
    (infer(data="a"), 400, "data of TEXT is a string"),
    (infer(data=["\ud83d"]), 400, "lone surrogate"),
    (infer(parameters={"shared_memory_region": "x"}), 400, "shared memory"),
    (infer(parameters={"binary_data_size": 5}), 400, "0 bytes are left"),
    ({"inputs": [TEXT, TEXT | {"name": "TEXT_PAIR", "shape": [2], "data": ["a", "b"]}]}, 400, "TEXT_PAIR has 2 rows"),
    (infer() | {"id": 7}, 400, "id is a number"),
    (infer() | {"outputs": [{"name": "OUT"}]}, 400, "outputs are LABEL"),
    (infer() | {"outputs": [{"name": "SCORES", "parameters": {"classification": 4}}]}, 400, "at most 3"),
    (infer() | {"outputs": [{"name": "SCORES", "parameters": False}]}, 400, "parameters is a boolean"),
    (infer() | {"parameters": {"subnet": "9x9"}}, 400, "9x9"),
    (infer() | {"parameters": {"subnets": "1x1"}}, 400, "'subnets'"),
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
def test_what_is_wrong_is_named(url: str, path: str, body: object, status: int, message: str) -> None:
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
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe{\x00}\x00", 400),
    (b'{"inputs": "a\xff"}', 400),
    (b'{"inputs": "a", "parameters": {"min_quality": NaN}}', 400),
    (b'{"inputs": "a", "parameters": {"top_k": 1' + b"0" * 5000 + b"}}", 400),
    (b'{"inputs": "a", "parameters": {"min_quality": 1' + b"0" * 400 + b"}}", 422),
    (b'{"inputs": "a", "parameters": {"latency_budget_ms": 1e999}}', 422),
    (b'{"inputs": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400),
    (b'{"inputs": 1, "inputs": "the last one counts"}', 200),
    (b'{"inputs": "nul \\u0000 and \\ufffe"}', 200),
    (b"null", 422),
]


@pytest.mark.parametrize(("body", "status"), UNREADABLE)
def test_bytes_of_every_kind(url: str, body: bytes, status: int) -> None:
    for path in ("/", "/models/tiny", "/predict", "/v2/models/tiny/infer"):
        answer = post(url + path, body)
        allowed = {status, 400} if path.startswith("/v2") else {status}
        assert answer.status_code in allowed, answer.text


def test_binary_tensors_that_lie(url: str) -> None:
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
        (6, b"\x01\0\0\0a", "out of range"),
        (-1, b"", "out of range"),
        (True, b"a", "out of range"),
        (10, b"\x01\0\0\0a" * 2, "has 2 strings"),
        (5, b"\x01\0\0\0ab", "1 bytes more"),
    ):
        status, error = ask(head(size), binary)
        assert (status, message in error) == (400, True), error
    for length in ("-1", "x", "9" * 40, "1e3", ""):
        assert ask(head(5), b"\x01\0\0\0a", length)[0] == 400


def test_other_kinds_and_compressions(url: str) -> None:
    body = b'{"inputs": "a"}'
    assert httpx.post(url, content=body).status_code == 200  # no content type: JSON
    assert post(url, body, **{"content-type": "application/vnd.api+json; charset=utf-8"}).status_code == 200
    assert post(url, body, **{"content-type": "text/plain"}).status_code == 415
    assert post(url, gzip.compress(body), **{"content-encoding": "gzip"}).status_code == 200
    assert post(url, body, **{"content-encoding": "gzip"}).status_code == 400
    assert post(url, gzip.compress(body)[:-9], **{"content-encoding": "gzip"}).status_code == 400
    assert post(url, body, **{"content-encoding": "br"}).status_code == 415
    bomb = gzip.compress(b" " * 50 * LIMIT)
    assert len(bomb) < LIMIT
    assert post(url, bomb, **{"content-encoding": "gzip"}).status_code == 413


def test_a_body_is_held_to_its_size(url: str) -> None:
    assert post(url, b" " * (LIMIT + 1)).status_code == 413
    assert httpx.post(url, content=iter([b" " * LIMIT, b" "])).status_code == 413  # without a content length
    whole = json.dumps({"inputs": "a"}).encode()
    assert post(url, whole + b" " * (LIMIT - len(whole))).status_code == 200


def test_a_body_is_held_to_its_time(run: Path) -> None:
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
    for path in ("/", "/predict", "/v2/models/tiny/infer"):
        refused = httpx.get(url + path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    for path in ("/models/bert/base", "/v2/models/bert/infer", "/v2/models/%00/infer"):
        assert post(url + path, b'{"inputs": "a"}').status_code == 404


def test_counters_are_those_of_prometheus(url: str) -> None:
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


def test_who_hangs_up_leaves_the_queue(url: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_dead_or_draining_server_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_numbers_that_are_none_are_no_answer(url: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*texts: object, **options: object) -> SimpleNamespace:
        return SimpleNamespace(
            outputs=(
                SimpleNamespace(logits=(float("nan"), 0.0, 0.0), variant="1x1", tokens=1, truncated=False, flops=1),
            ),
            timing=SimpleNamespace(tokenisation=0.0, queue=0.0, inference=0.0),
        )

    monkeypatch.setattr(service, "predict", broken)
    for path, body in (("/", {"inputs": "a"}), ("/predict", {"inputs": "a"}), ("/v2/models/tiny/infer", infer())):
        answer = post(url + path, json.dumps(body).encode())
        assert (answer.status_code, answer.json()["error_type"]) == (424, "Backend")


def test_a_defect_is_a_500_that_is_counted(url: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*texts: object, **options: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(service, "predict", broken)
    answer = post(url, b'{"inputs": "a"}')
    assert (answer.status_code, answer.json()["error_type"]) == (500, "Backend")
    assert "secret" not in answer.text
    assert 'limbert_requests_total{protocol="huggingface",status="500"} 1.0' in httpx.get(f"{url}/metrics").text


@pytest.mark.slow
def test_the_openapi_description_holds_and_nothing_ends_in_5xx(url: str, tmp_path: Path) -> None:
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
