"""``limbert serve`` as a process: it answers, ends by SIGTERM after what is under way, and refuses in one line."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.factories.runs import command, environment, needs_encoder
from tests.factories.servers import make_run

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


def test_it_answers_and_ends_after_what_is_under_way(run: Path) -> None:
    texts = ["a film that goes on and on " * 4] * 512
    with serving(run, "--slo", "60s", "--policy", "static:1x1", "--max-batch-tokens", "64") as (process, url):
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        with ThreadPoolExecutor() as pool, httpx.Client(base_url=url, timeout=60) as client:
            long = pool.submit(client.post, "/predict", json={"inputs": [[text] for text in texts]})
            while not long.done() and "limbert_queued_rows 0.0" in httpx.get(f"{url}/metrics", timeout=60).text:
                pass
            process.send_signal(signal.SIGTERM)
            answer = long.result()
        assert answer.status_code == 200
        assert len(answer.json()) == len(texts)
        assert answer.headers["x-limbert-size"] == "1x1"
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_several_processes_share_a_port(run: Path) -> None:
    with serving(run, "--workers", "2", "--slo", "60s") as (process, url):
        answers = [httpx.post(f"{url}/predict", json={"inputs": "a film"}, timeout=120) for _ in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 8
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_bad_settings_end_it_with_one_line(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for options, said in (
            (["--slo", "50"], "--slo '50' cannot be read; write 5ms or 0.005s"),
            (["--port", str(taken.getsockname()[1])], "Address already in use"),
        ):
            done = subprocess.run(
                command("serve", run, *options),
                env=environment(run.parent),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert said in done.stderr
            assert done.stderr.count("\n") == 1
