"""The README is a program: its commands and its Python run, in order, in an empty folder."""

import csv
import shlex
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from tests.factories.code_blocks import BLOCK, commands
from tests.factories.ports import free_port
from tests.factories.runs import DEMO_DATA, ENCODER, command, environment, needs_encoder, run, run_python

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SHORTENED = {
    "train": ["--max-steps", "2"],
    "pretrain": ["--max-steps", "1", "--max-length", "32", "--batch-size", "4"],
    "search": ["--trials", "14"],
    "profile": ["--seconds", "1"],
    "serve": ["--slo", "60s"],  # in 50 ms a busy machine answers nothing
}
PORT = "8765"  # the README's


def _run_block(language: str, text: str, folder: Path, done: list[str], beside: ExitStack) -> None:
    if language == "python":
        text = text.replace("seed=42)", "seed=42, max_steps=2)")
        finished = run_python(folder, text)
        assert finished.returncode == 0, finished.stderr
        done.append(text)
    for line in commands(text) if language == "console" else []:
        words = shlex.split(line)
        if words[0] != "limbert" or words[1] == "demo":
            continue  # installing, and the demo itself: see test_demo
        changes = SHORTENED.get(words[1], [])
        if "--background" in words:
            words.remove("--background")
            beside.enter_context(serving(folder, [*words[1:], *changes]))
            done.append(line)
            continue
        words += changes
        finished = run(folder, *words[1:])
        assert finished.returncode == 0, (line, finished.stderr)
        done.append(line)


@contextmanager
def serving(folder: Path, words: list[str]) -> Iterator[None]:
    """A server that the blocks after it ask."""
    with open(folder / "server.log", "w+b") as log:
        process = subprocess.Popen(
            command(*words), cwd=folder, env=environment(folder), stdout=log, stderr=subprocess.STDOUT
        )
        health = f"http://127.0.0.1:{words[words.index('--port') + 1]}/health"
        try:
            while True:
                assert process.poll() is None, (folder / "server.log").read_text(encoding="utf-8")
                with suppress(OSError), urllib.request.urlopen(health, timeout=30):
                    break
                time.sleep(0.2)
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, (folder / "server.log").read_text(encoding="utf-8")
        finally:
            process.kill()


def run_blocks(folder: Path) -> list[str]:
    """Run every Python block and ``limbert`` command, ``--background`` ones beside the others; returns what was run."""
    done: list[str] = []
    port = str(free_port())
    with ExitStack() as beside:
        for language, text in BLOCK.findall(README):
            _run_block(language, text.replace(PORT, port), folder, done, beside)
    return done


def lay_out(folder: Path) -> None:
    """What the README supposes to be there: the reader's own data (some rows of the demo's) and an encoder."""
    (folder / "tickets").mkdir()
    for name, every in (("train.csv", 10), ("dev.csv", 40)):
        with (DEMO_DATA / name).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        with (folder / "tickets" / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows[::every]])
    (folder / "texts").mkdir()
    (folder / "texts" / "some.txt").write_text("The European lobster is blue while it lives .\n" * 60, encoding="utf-8")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "encoder").symlink_to(ENCODER)


@pytest.mark.slow
@needs_encoder
def test_demo_tells_the_whole_story_in_five_minutes(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"OMP_NUM_THREADS": "2"}
    finished = subprocess.run(command("demo"), cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for name in ("1x1", "0.5x0.75", "0.25x0.5"):
        assert name in finished.stdout
    assert "speed-up" in finished.stdout
    assert "limbert-demo" in finished.stdout
    assert (tmp_path / "limbert-demo" / "limbert.json").exists()
    again = run(tmp_path, "demo")
    assert again.returncode == 0
    assert "finished already" in again.stderr
    lay_out(tmp_path)
    done = run_blocks(tmp_path)
    assert len(done) >= 8
    assert any("ElasticModel" in text for text in done)
