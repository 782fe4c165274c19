"""Worker processes of one server: a killed one is replaced, and requests are answered meanwhile."""

import json
import signal
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest
from tests.factories.runs import command, environment, needs_encoder
from tests.factories.servers import make_run


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if child.status() != "zombie" and "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
@needs_encoder
def test_killed_worker_is_replaced(tmp_path: Path) -> None:
    options = ["--port", "0", "--json", "--workers", "2", "--slo", "60s", "--threads", "1"]
    arguments = command("serve", make_run(tmp_path / "run"), *options)
    with subprocess.Popen(arguments, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            time.sleep(2)
            first = workers(process)
            first[0].suspend()  # it answers no health check any more
            time.sleep(2)
            first[0].kill()
            end = time.monotonic() + 100  # a health check may take 120 s
            while len({child.pid for child in workers(process)} - {child.pid for child in first}) < 1:
                assert time.monotonic() < end
                time.sleep(0.1)
            assert httpx.post(f"{url}/predict", json={"inputs": "a film"}, timeout=120).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0
        finally:
            process.kill()
