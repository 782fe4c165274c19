"""Runs the commands, Python blocks and service of docs/deploy.md, in order, in an empty folder."""

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
from tests.factories.runs import DATA_OPTIONS, call, environment, make_small_encoder, needs_encoder, run_python

for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(library)
PORT = str(free_port())  # instead of the page's
PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8").replace("8017", PORT)


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Run ``python serve.py`` from when it accepts requests to the end of the block."""
    with subprocess.Popen([sys.executable, "serve.py"], cwd=folder, env=environment(folder)) as server:
        try:
            while True:
                assert server.poll() is None, "serve.py exited"
                try:
                    urlopen(f"http://127.0.0.1:{PORT}", timeout=30)
                except HTTPError:
                    break  # it runs and refuses GET
                except OSError:
                    time.sleep(0.1)
            yield
        finally:
            server.kill()


@needs_encoder
def test_deploy_page_blocks_run(tmp_path: Path) -> None:
    make_small_encoder(tmp_path / "small")
    options = ["--model", "small", "--output", "runs/tickets", "--max-steps", "2", "--phases", "finetune"]
    trained = call(tmp_path, "train", *DATA_OPTIONS, *options)
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "texts.txt").write_text("Where is my card?\nI was charged twice.\n")
    printed: list[str] = []
    for language, text in BLOCK.findall(PAGE):
        if text.startswith("# serve.py"):
            (tmp_path / "serve.py").write_text(text, encoding="utf-8")
        elif language == "python" and "urlopen" in text:
            with serving(tmp_path):
                printed.append(run_python(tmp_path, text).stdout)
                with pytest.raises(HTTPError, match="400"):
                    urlopen(f"http://127.0.0.1:{PORT}", data=b"[]")
        elif language == "python":
            printed.append(run_python(tmp_path, text).stdout)
        for line in commands(text) if language == "console" else []:
            if line == "python serve.py &":
                continue  # started for the client's block
            words = shlex.split(line)
            words += ["--max-drop", "100"] if "--int8" in words else []  # after two steps the metric is noise
            assert words[0] == "limbert"
            exported = call(tmp_path, *words[1:])
            assert exported.returncode == 0, (line, exported.stderr)
    onnx, openvino, cascade, served, transformers = printed
    assert onnx == openvino
    assert len(cascade.split(", ")) == 2
    labels = onnx.strip("[]\n").replace("'", "").split(", ")
    for predictions in (served, transformers):
        assert [part.partition("'")[0] for part in predictions.split("'label': '")[1:]] == labels
