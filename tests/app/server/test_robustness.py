"""The benchmark of robustness in small: every answer compared with the engine's, good and bad requests mixed."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from app_material import environment, needs_encoder
from live_server import make_run, opened, served

from limbert.app.server.menu import Menu
from limbert.app.server.service import Service
from limbert.run.checkpoints import open_checkpoint

pytestmark = needs_encoder
SCRIPT = Path(__file__).parents[3] / "benchmarks" / "serve_robustness.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("serve_robustness", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("robust") / "tiny")


@pytest.fixture(scope="module")
def service(run: Path) -> Iterator[Service]:
    with opened(run, policy="adaptive", slo=20.0, max_texts=32, body_timeout=1.0, name="model") as service:
        yield service


def test_some_hundred_mixed_requests(script: ModuleType, run: Path, service: Service) -> None:
    checkpoint = open_checkpoint(run)
    assert checkpoint.task is not None
    menu = Menu.of(run, checkpoint.model, task=checkpoint.task)
    pool = script.Pool(checkpoint, menu, count=40, chance=random.Random(1))
    mix = script.Mix(pool, menu, "model", batch=32, chance=random.Random(2))
    with served(service) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        report = asyncio.run(script.drive(host, int(port), mix.calls(400), connections=16))
        assert report.wrong == []
        assert report.answered > 150
        assert {*report.statuses} > {"huggingface", "tei", "open inference, binary", "wrong", "hangs up", "slow"}
        assert service.snapshot().queued == 0
        assert 'status="500"' not in httpx.get(f"{url}/metrics").text
    swapped = pool.right(pool.short[0], pool._logits["1x1"][pool._place[pool.short[1]]].tolist(), "1x1")
    assert not swapped  # the comparison tells texts apart


@pytest.mark.slow
def test_the_whole_benchmark(run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, run, "--requests", "1500", "--texts", "60"],
        env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong: 0" in done.stdout
    assert "24 of 24 under way answered" in done.stdout
