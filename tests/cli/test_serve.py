"""``limbert serve`` as a process: start, signals at any moment, background, and one-line errors."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from tests.factories.ports import free_port
from tests.factories.runs import call, command, environment, needs_encoder
from tests.factories.servers import make_run

from limbert.cli.main import app
from limbert.errors import ConfigError

pytestmark = needs_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("serve") / "run")


@contextmanager
def serving(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    arguments = command("serve", run, "--port", "0", "--json", *options)
    with subprocess.Popen(
        arguments, env=environment(run.parent), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield process, json.loads(line)["url"]
        finally:
            process.kill()


def test_sigterm_completes_requests_in_progress(run: Path) -> None:
    texts = ["a film that goes on and on " * 4] * 512
    with serving(run, "--slo", "60s", "--policy", "static:1x1", "--max-batch-tokens", "64") as (process, url):
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        with ThreadPoolExecutor() as pool, httpx.Client(base_url=url, timeout=60) as client:
            long = pool.submit(client.post, "/predict", json={"inputs": [[text] for text in texts]})
            while not long.done() and "limbert_queued_rows 0.0" in httpx.get(f"{url}/metrics", timeout=60).text:
                pass
            process.send_signal(signal.SIGTERM)
            response = long.result()
        assert response.status_code == 200
        assert len(response.json()) == len(texts)
        assert response.headers["x-limbert-size"] == "1x1"
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_workers_share_a_port(run: Path) -> None:
    with serving(run, "--workers", "2", "--slo", "60s") as (process, url):
        responses = [httpx.post(f"{url}/predict", json={"inputs": "a film"}, timeout=120) for _ in range(8)]
        assert [response.status_code for response in responses] == [200] * 8
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
@pytest.mark.parametrize("moment", ["import", "load", "ready", "run"])
def test_sigterm_at_any_moment_leaves_nothing(run: Path, options: list[str], moment: str) -> None:
    """No process, no port, no accepted request without its response, no traceback."""
    port = str(free_port())
    arguments = command("serve", run, "--port", port, "--json", "--slo", "60s", "--threads", "1", *options)
    with subprocess.Popen(
        arguments, env=environment(run.parent), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url, lost = f"http://127.0.0.1:{port}", []
        stop, threads = threading.Event(), []
        if moment == "import":
            time.sleep(0.3)
        elif moment == "load":
            while process.poll() is None and not accepts(int(port)):
                time.sleep(0.02)
            assert httpx.post(url, json={"inputs": "a"}, timeout=60).status_code == 503
        else:
            assert process.stdout.readline()
        if moment == "run":

            def load() -> None:
                with httpx.Client(timeout=60) as client:
                    while not stop.is_set():
                        try:
                            response = client.post(url, json={"inputs": ["It rained."] * 8})
                        except httpx.ConnectError:
                            return  # not accepted
                        except httpx.TransportError as error:
                            lost.append(error)
                            return
                        if response.status_code not in (200, 503):
                            lost.append(response)

            threads = [threading.Thread(target=load) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(2)
        started = children(process)
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=90)
        stop.set()
        for thread in threads:
            thread.join()
        assert status in ((0, 128 + signal.SIGTERM, -signal.SIGTERM) if moment == "import" else (0,))
        assert "Traceback" not in process.stderr.read()
        assert len([error for error in lost if not isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)]) == 0
        assert len(lost) <= len(threads)  # idle connections that closed as the next request was sent
        assert not psutil.wait_procs(started, timeout=60)[1]
        assert not accepts(int(port))


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """SIGHUP as a terminal has it, also where the tests run under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
def test_closed_terminal_stops_the_server(run: Path, options: list[str]) -> None:
    with serving(run, "--threads", "1", *options) as (process, url):
        started = [psutil.Process(process.pid), *children(process)]
        for one in started:  # a terminal sends it to all
            one.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 0
        assert not psutil.wait_procs(started, timeout=60)[1]
        assert not accepts(int(url.rpartition(":")[2]))


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_workers_stop_when_their_parent_is_killed(run: Path) -> None:
    with serving(run, "--workers", "2") as (process, url):
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        workers = children(process)
        assert len(workers) >= 2
        process.kill()
        process.wait()
        assert not psutil.wait_procs(workers, timeout=60)[1]


def test_background_returns_when_the_server_is_ready(run: Path) -> None:
    arguments = command("serve", run, "--port", "0", "--threads", "1", "--background", "--json")
    done = subprocess.run(arguments, env=environment(run.parent), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ready = json.loads(done.stdout)
    server = psutil.Process(ready["pid"])
    try:
        assert httpx.get(f"{ready['url']}/v2/health/ready", timeout=60).status_code == 200
    finally:
        server.terminate()
        server.wait(timeout=60)
        Path(ready["log"]).unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = command("serve", run, "--port", str(taken.getsockname()[1]), "--background")
        failed = subprocess.run(arguments, env=environment(run.parent), capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "already in use" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_missing_library_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ConfigError, match=r"limbert\[serve\]"):
        app(["serve", str(run)], standalone_mode=False)


def test_bad_settings_are_one_line(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for options, message in (
            (["--slo", "50"], "--slo"),
            (["--port", str(taken.getsockname()[1])], "Address already in use"),
        ):
            done = call(run.parent, "serve", run, *options)
            assert done.returncode == 1
            assert message in done.stderr
            assert done.stderr.count("\n") == 1
