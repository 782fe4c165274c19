"""A small gated model on disk and input files with texts of many lengths, for batch prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from tests.factories.gated_models import make_model
from tests.factories.runs import ENCODER
from transformers import AutoTokenizer

from limbert.data.tasks import Task
from limbert.inference.policy import Policy
from limbert.method.early_exit import ExitRule

TASK = Task("own", "classification", ("low", "middle", "high"), ("accuracy",))
POLICY = Policy(gates=True, exits=ExitRule("entropy", 0.9))
WORDS = tuple("the quick brown fox jumps over a lazy dog while wizards brew potions".split())  # noqa: SIM905


def save_model(folder: Path, task: Task = TASK) -> Path:
    """Save a random model with gates for the task."""
    model = make_model("bert", vocab_size=30522, num_labels=task.num_outputs)
    model.record = {"task": task.to_dict()}
    model.save_pretrained(folder, tokenizer=AutoTokenizer.from_pretrained(ENCODER))
    return folder


def make_texts(count: int, *, seed: int = 0) -> list[str]:
    """Texts of 1 to 29 random words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=int(length))) for length in rng.integers(1, 30, size=count)]


def write_parquet(folder: Path, texts: Sequence[str | None], *, files: int, row_group: int) -> None:
    """Write the texts with a column of ids into a number of files."""
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(texts)), files)):
        table = pyarrow.table({"id": rows, "text": [texts[row] for row in rows]})
        pyarrow.parquet.write_table(table, folder / f"texts-{number}.parquet", row_group_size=row_group)
