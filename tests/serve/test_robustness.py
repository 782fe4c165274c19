"""The robustness benchmark in small: every prediction compared with the engine's, valid and invalid requests mixed."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serve_mix import Mix, Pool
from serve_robustness import drive
from tests.factories.runs import environment, needs_encoder
from tests.factories.servers import BENCHMARKS, make_run, opened, served

from limbert.inference.load import load_checkpoint
from limbert.serve.service import Service
from limbert.serve.variants import ModelVariants

pytestmark = needs_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("robust") / "tiny")


@pytest.fixture(scope="module")
def service(run: Path) -> Iterator[Service]:
    with opened(run, policy="adaptive", slo=20.0, max_texts=32, body_timeout=5.0, name="model") as service:
        yield service


def test_mixed_requests(run: Path, service: Service) -> None:
    checkpoint = load_checkpoint(run)
    assert checkpoint.task is not None
    variants = ModelVariants.from_run(run, checkpoint.model, task=checkpoint.task)
    pool = Pool(checkpoint, variants, count=40, rng=random.Random(1))
    mix = Mix(pool, variants, "model", batch=32, rng=random.Random(2))
    with served(service) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        report = asyncio.run(drive(host, int(port), mix.calls(400), connections=16))
        assert report.wrong == []
        assert report.answered > 150
        assert {*report.statuses} > {"huggingface", "tei", "open inference, binary", "wrong", "disconnects", "slow"}
        assert service.snapshot().queued == 0
        assert 'status="500"' not in httpx.get(f"{url}/metrics").text
    one, other = [text for text in pool.short if len(text[0]) > 20][:2]
    assert not pool.right(one, pool.logits(other, "1x1").tolist(), "1x1")  # the comparison distinguishes texts
    assert not pool.right(one, pool.logits(one, "0.5x0.5").tolist(), "1x1")  # and variants


@pytest.mark.slow
def test_full_benchmark(run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "serve_robustness.py", run, "--requests", "1500", "--texts", "60"],
        env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong: 0" in done.stdout
    assert "24 of 24 in progress completed" in done.stdout
