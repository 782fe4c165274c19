"""What a training phase works on: a small model, random examples, arguments."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.factories.networks import VOCABULARY, make_network

from limbert import ElasticModel, ElasticTrainer, ElasticTrainingArguments, Space
from limbert.core.config import AnyPhaseConfig
from limbert.data.tasks import Task
from limbert.data.tokenize import RaggedTokens, TokenizedExamples
from limbert.train.output_run import train_phases
from limbert.train.phases import PHASES

TASK = Task("own", "classification", ("a", "b", "c"), ("accuracy",))
WIDTHS = (0.34, 0.5, 1.0)


def make_examples(count: int, *, seed: int) -> TokenizedExamples:
    """Random tokens of three to eleven a text, with three classes."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, size=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, VOCABULARY, size=offsets[-1]).astype(np.int32)
    return TokenizedExamples(RaggedTokens(ids, None, offsets), torch.from_numpy(rng.integers(3, size=count)), 0, 0)


def make_model(case: str = "bert", **changes: Any) -> ElasticModel:
    """A random elastic model whose depths keep the first layers."""
    return ElasticModel(make_network(case, **changes), space=Space(widths=WIDTHS, layers="first"))


def make_arguments(folder: Path, **settings: Any) -> ElasticTrainingArguments:
    """Quiet training on the CPU."""
    defaults = {"seed": 5, "use_cpu": True, "disable_tqdm": True}
    return ElasticTrainingArguments(str(folder), **defaults | settings)


def make_trainer(folder: Path, model: ElasticModel | None = None, **options: Any) -> ElasticTrainer:
    """A trainer on random examples; options that are fields of the arguments go there."""
    named = {"teacher", "subnets", "train_dataset", "eval_dataset", "callbacks", "compute_metrics", "optimizers",
             "evaluate_subnets", "processing_class", "data_collator"}  # fmt: skip
    settings = {name: value for name, value in options.items() if name not in named}
    data = {"train_dataset": make_examples(24, seed=1), "eval_dataset": make_examples(16, seed=2)}
    chosen = {name: value for name, value in options.items() if name in named}
    return ElasticTrainer(model or make_model(), make_arguments(folder, **settings), **data | chosen)


def train_phase(
    name: str, config: AnyPhaseConfig, folder: Path, model: ElasticModel | None = None, **options: Any
) -> ElasticModel:
    """One phase on random examples."""
    data = {"train_dataset": make_examples(90, seed=1), "eval_dataset": make_examples(60, seed=2)}
    settings = data | {"args": make_arguments(folder), "metric": "accuracy"} | options
    return train_phases(model or make_model(), [(PHASES[name], config)], **settings)
