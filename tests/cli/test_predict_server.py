"""``limbert predict --server`` predicts what ``limbert predict RUN`` predicts."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.factories.runs import needs_encoder
from tests.factories.servers import make_run, opened, served
from typer.testing import CliRunner

from limbert import Client
from limbert.cli.main import app
from limbert.errors import ConfigError, LimbertError, RejectedError
from limbert.serve.process import bind_socket, refuse_while_loading
from limbert.serve.settings import ServeSettings

pytestmark = needs_encoder
TEXTS = [f"Text number {number}: it rained{' and rained' * (number % 7)}." for number in range(40)]
SUBNET = ["--subnet", "0.5x1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("client") / "tiny")


@pytest.fixture(scope="module")
def url(trained: Path) -> Iterator[str]:
    with opened(trained, max_texts=16) as service, served(service) as address:
        yield address


def predict(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["predict", *map(str, arguments), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout)


def agree(served: list[dict[str, Any]], local: list[dict[str, Any]]) -> None:
    assert len(served) == len(local)
    for one, other in zip(served, local, strict=True):
        assert one.pop("size")
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
        assert one == other


def test_a_file_of_texts(url: str, trained: Path, tmp_path: Path) -> None:
    """In requests of 16, some of them concurrent."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    agree(predict("--server", url, *SUBNET, "--input", tmp_path / "texts.txt"),
          predict(trained, *SUBNET, "--input", tmp_path / "texts.txt"))  # fmt: skip


def test_pairs_and_a_policy(url: str, trained: Path) -> None:
    texts = ["--text", "It rained.", "--pair", "Rain.", "--text", "Sun.", "--pair", "Sol."]
    options = ["--policy", "static:0.5x0.5", *texts]
    agree(predict("--server", url, *options), predict(trained, *options))


def test_regression_values(tmp_path: Path) -> None:
    scored = make_run(tmp_path / "score", task_type="regression")
    with opened(scored) as service, served(service) as url:
        options = [*SUBNET, "--text", "It rained.", "--text", "Sun."]
        agree(predict("--server", url, *options), predict(scored, *options))
        prediction = Client(url).predict("It rained.")[0]
        assert (prediction.label, prediction.scores) == (None, {})


def test_multi_label_threshold(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """All labels above one half, as without a server."""
    monkeypatch.setattr(Client, "task_type", "multi-label")
    scores = Client(url).predict(TEXTS[0], subnet="1x1")[0].scores
    held = [{"label": label, "score": score} for label, score in scores.items() if score > 0.5]
    assert predict("--server", url, "--subnet", "1x1", "--text", TEXTS[0])[0]["labels"] == held


def test_output_is_as_without_a_server(url: str, trained: Path) -> None:
    options = [*SUBNET, "--text", TEXTS[0]]
    shown, local = (
        CliRunner().invoke(app, ["predict", *where, *options]) for where in (["--server", url], [str(trained)])
    )
    assert shown.stdout == local.stdout


def test_client_imports_no_torch(url: str, tmp_path: Path) -> None:
    """It would take longer than the request."""
    (tmp_path / "texts.txt").write_text("It rained.\n")
    words = ["predict", "--server", url, "--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "a.jsonl")]
    code = f"import sys; from limbert.cli.main import app; app({words!r}, standalone_mode=False); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert json.loads((tmp_path / "a.jsonl").read_text())["text"] == "It rained."
    assert not {"torch", "transformers", "fastapi"} & {*loaded}


def test_api_key_is_sent(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(trained, api_key="schlüssel") as service, served(service) as url:
        options = ["--server", url, "--text", "It rained."]
        with pytest.raises(RejectedError, match="asks for an API key"):
            predict(*options)
        first = predict(*options, "--api-key", "schlüssel")
        monkeypatch.setenv("LIMBERT_API_KEY", "schlüssel")
        assert predict(*options) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a"], "either RUN"),
        (["run", "--server", "http://host", "--text", "a"], "not both"),
        (["--server", "http://host", "--threads", "1", "--text", "a"], "--threads is for a model on this machine"),
        (["--server", "http://host", "--precision", "fp32", "--text", "a"], "--precision is for"),
        (["--server", "http://host", "--batch-size", "64", "--text", "a"], "--batch-size is for"),
        (["--server", "http://host", "--policy", "width", "--widths", "1", "--text", "a"], "--widths is for"),
        (["run", "--api-key", "x", "--text", "a"], "--api-key is for --server"),
        (["--server", "host", "--text", "a"], "must be a URL"),
        (["--server", "http://host", "--input", "a.csv", "--text", "a"], "--text or --input"),
    ],
)
def test_contradicting_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        predict(*arguments)


def test_loading_server_is_not_ready_yet() -> None:
    with bind_socket(ServeSettings(port=0)) as listener, refuse_while_loading(listener):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RejectedError, match="not ready yet"):
            predict("--server", url, "--text", "a")


def test_unreachable_server_is_one_line() -> None:
    with pytest.raises(LimbertError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        predict("--server", "http://127.0.0.1:9", "--text", "a")
