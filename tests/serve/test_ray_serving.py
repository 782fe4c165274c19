"""The application on Ray Serve predicts as the engine does, scales with the load, and stops on SIGTERM."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tests.factories.runs import ENCODER, environment, make_small_encoder, needs_encoder
from transformers import AutoTokenizer

from limbert import ElasticModel, Space
from limbert.data.readers import Examples
from limbert.data.tasks import custom_task
from limbert.data.tokenize import tokenize_texts
from limbert.errors import ConfigError
from limbert.inference.load import load_checkpoint
from limbert.inference.policy import Policy
from limbert.inference.predict import predict

pytest.importorskip("ray.serve")
pytest.importorskip("fastapi")
TEXTS = ["the quick brown fox", "jumps", "over the lazy dog and under the busy cat"]


@pytest.mark.parametrize("text", ["", "0", "3:2", "two", "1:", "1:2:3", "-1"])
def test_replicas_are_a_number_or_a_range(text: str) -> None:
    from limbert.serve.ray import ReplicaConfig

    assert ReplicaConfig.parse("3", target_ongoing_requests=1.0) == ReplicaConfig(3, 3, 1.0)
    assert ReplicaConfig.parse("1:8", target_ongoing_requests=1.0) == ReplicaConfig(1, 8, 1.0)
    with pytest.raises(ConfigError, match="replicas"):
        ReplicaConfig.parse(text, target_ongoing_requests=1.0)


def test_replicas_divide_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbert.serve.ray import ReplicaConfig, serve_on_ray
    from limbert.serve.settings import ServeSettings

    seen: list[ServeSettings] = []

    def service(run: str, settings: ServeSettings) -> None:
        seen.append(settings)
        raise ConfigError("no model")

    monkeypatch.setattr("limbert.serve.ray.Service", service)
    with pytest.raises(ConfigError):
        serve_on_ray("run", ServeSettings(), ReplicaConfig(1, 3), on_ready=print)
    assert [(one.workers, one.threads) for one in seen] == [(3, 1)]


def test_failed_inference_is_an_unhealthy_replica() -> None:
    from limbert.serve.ray import ReplicaConfig, _deployment
    from limbert.serve.settings import ServeSettings

    check_health = _deployment(ServeSettings(threads=1), ReplicaConfig(), None).func_or_class.check_health
    service = SimpleNamespace(healthy=True)
    replica = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(service=service)))
    check_health(replica)
    service.healthy = False
    with pytest.raises(RuntimeError, match="failed"):
        check_health(replica)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``limbert serve --ray`` with one replica that may become two."""
    make_small_encoder(tmp_path / "encoder")
    space = Space(widths=(0.5, 1.0), depths=(1.0,))
    model = ElasticModel.from_pretrained(tmp_path / "encoder", space=space, new_head=True)
    model.record = {"task": custom_task("classification", ("dull", "bright")).to_dict()}
    model.save_pretrained(tmp_path / "run", tokenizer=AutoTokenizer.from_pretrained(ENCODER))
    options = ["--ray", "--replicas", "1:2", "--replica-requests", "1", "--port", "0", "--slo", "60s", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "limbert", "serve", "run", *options],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line)["url"], process
    finally:
        process.kill()
        process.communicate()


def ask(url: str, value: Any) -> Any:
    body = json.dumps(value).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def replicas(process: subprocess.Popen[str]) -> int:
    return sum(map(is_replica, psutil.Process(process.pid).children(recursive=True)))


def is_replica(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
        return "ServeReplica" in " ".join(process.cmdline())
    return False


@pytest.mark.slow
@needs_encoder
def test_predictions_scaling_and_shutdown(server: tuple[str, subprocess.Popen[str]], tmp_path: Path) -> None:
    url, process = server
    opened = load_checkpoint(tmp_path / "run")
    examples = Examples(tuple(TEXTS), None, None)
    tokens = tokenize_texts(examples, opened.tokenizer, max_length=opened.max_length, use_cache=False)
    assert opened.task is not None
    expected = predict(opened.model, tokens, task=opened.task, policy=Policy(subnet="0.5x1"))
    parameters = {"subnet": "0.5x1"}
    first = [rows[0] for rows in ask(url, {"inputs": TEXTS, "parameters": parameters})]
    assert [row["label"] for row in first] == [one.label for one in expected]
    assert [row["score"] for row in first] == pytest.approx([one.score for one in expected], abs=1e-5)
    data = [{"name": "TEXT", "datatype": "BYTES", "shape": [3], "data": TEXTS}]
    infer = ask(f"{url}/v2/models/run/infer", {"inputs": data, "parameters": parameters})
    assert next(one for one in infer["outputs"] if one["name"] == "LABEL")["data"] == [one.label for one in expected]
    assert replicas(process) == 1

    end = time.monotonic() + 600
    with ThreadPoolExecutor(12) as pool:
        while replicas(process) < 2:
            assert time.monotonic() < end, "no second replica under load"
            list(pool.map(lambda _: ask(url, {"inputs": TEXTS * 20}), range(48)))
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert not psutil.wait_procs(started, timeout=120)[1], "processes are left"
