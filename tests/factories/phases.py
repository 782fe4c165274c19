"""What one training phase works on: a small model, random examples, a run directory."""

import types
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tests.factories.networks import VOCABULARY, make_network

from limbert import ElasticModel, Space
from limbert.data.tasks import Task
from limbert.data.tokenize import RaggedTokens, TokenizedExamples
from limbert.train.context import TaskPhaseSetup
from limbert.train.progress import TrainingCallback
from limbert.train.run_folder import RunDirectory

TASK = Task("own", "classification", ("a", "b", "c"), ("accuracy",))


WIDTHS = (0.34, 0.5, 1.0)


def make_examples(count: int, *, seed: int) -> TokenizedExamples:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, size=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, VOCABULARY, size=offsets[-1]).astype(np.int32)
    return TokenizedExamples(RaggedTokens(ids, None, offsets), torch.from_numpy(rng.integers(3, size=count)), 0, 0)


def make_model(case: str = "bert") -> ElasticModel:
    return ElasticModel(make_network(case), space=Space(widths=WIDTHS, layers="first"))


def make_work(folder: Path, *, should_stop: object = lambda: False, rows: int = 300) -> TaskPhaseSetup:
    workspace = RunDirectory(folder / "run", {"a": 1})
    workspace.create()
    around = types.SimpleNamespace(
        accelerator=Accelerator(), seed=5, run_dir=workspace, callback=TrainingCallback(), should_stop=should_stop
    )
    return TaskPhaseSetup(
        "gates",
        model=make_model(),
        task=TASK,
        train_dataset=make_examples(rows, seed=1),
        eval_dataset=make_examples(60, seed=2),
        precision="fp32",
        context=around,
    )
