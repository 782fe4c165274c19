"""docs/deploy.md is a program: its commands, its Python and its service run, in order, in an empty folder."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from tests.factories.code_blocks import BLOCK, commands
from tests.factories.ports import free_port
from tests.factories.runs import DATA_OPTIONS, call, environment, make_small_encoder, needs_encoder

for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(library)
PORT = str(free_port())  # in place of the page's
PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8").replace("8017", PORT)


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """``python serve.py &``, until it answers; ended afterwards."""
    with subprocess.Popen([sys.executable, "serve.py"], cwd=folder, env=environment(folder)) as server:
        try:
            while True:
                assert server.poll() is None, "the service ended"
                try:
                    urlopen(f"http://127.0.0.1:{PORT}", timeout=30)
                except HTTPError:
                    break  # it is there, and does not take GET
                except OSError:
                    time.sleep(0.1)
            yield
        finally:
            server.kill()


def python(text: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_encoder
def test_the_blocks_of_the_page_run(tmp_path: Path) -> None:
    make_small_encoder(tmp_path / "small")
    options = ["--model", "small", "--output", "runs/tickets", "--max-steps", "2", "--phases", "finetune"]
    trained = call(tmp_path, "train", *DATA_OPTIONS, *options)
    assert trained.returncode == 0, trained.stderr
    printed: list[str] = []
    service = False
    for language, text in BLOCK.findall(PAGE):
        if text.startswith("# serve.py"):
            (tmp_path / "serve.py").write_text(text, encoding="utf-8")
        elif language == "python" and "urlopen" in text:
            assert service
            with serving(tmp_path):
                printed.append(python(text, tmp_path))
                wrong = python(
                    "from urllib.request import urlopen\nfrom urllib.error import HTTPError\n"
                    f"try:\n    urlopen('http://127.0.0.1:{PORT}', data=b'[]')\n"
                    "except HTTPError as error:\n    print(error.code)",
                    tmp_path,
                )
                assert wrong.strip() == "400"
        elif language == "python":
            printed.append(python(text, tmp_path))
        for line in commands(text) if language == "console" else []:
            if line == "python serve.py &":
                service = True
                continue
            words = shlex.split(line)
            words += ["--max-drop", "100"] if "--int8" in words else []  # a model of two steps guesses
            assert words[0] == "limbert"
            done = call(tmp_path, *words[1:])
            assert done.returncode == 0, (line, done.stderr)
    onnx, openvino, served, pipe = printed
    assert onnx == openvino  # the same sub-network answers the same in every runtime
    labels = onnx.strip("[]\n").replace("'", "").split(", ")
    for answers in (served, pipe):
        assert [part.partition("'")[0] for part in answers.split("'label': '")[1:]] == labels
