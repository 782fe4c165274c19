"""What an exported model is tried on: texts of the run's own data, else sentences shipped here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from limbert.core.config import DataConfig
from limbert.data.tokenize import TokenizedExamples
from limbert.data.readers import Examples
from limbert.data.task_registry import KINDS
from limbert.data.load import load_evaluation_data, load_task_data
from limbert.errors import ConfigError, DataError
from limbert.inference.load import Opened
from limbert.run.validation import validation_slice

_TRIED = 48  # examples that every export answers before it takes its place
_BATCH = 8
_CALIBRATED = 128  # training examples that activations are scaled by


@dataclass(frozen=True)
class Trial:
    """What an export is tried on.

    Attributes:
        examples: tokenised.
        origin: what they are, in words.
        pair: whether the model's inputs are pairs of texts.
    """

    examples: TokenizedExamples
    origin: str
    pair: bool


def trial_examples(opened: Opened, config: DataConfig, *, required: bool) -> Trial:
    """Some texts, spread evenly over the development set; sentences shipped here where that cannot be read.

    Args:
        opened: the model; its task and tokenizer.
        config: where the data is.
        required: whether data that cannot be read is an error, because somebody named it.

    Raises:
        DataError: if it is, or a setting contradicts another (ConfigError).
    """
    if opened.task is not None:
        try:
            examples = next(iter(load_evaluation_data(config, opened.task).values()))
        except (DataError, ConfigError):
            if required:
                raise
        else:
            places = np.unique(np.linspace(0, len(examples) - 1, _TRIED).astype(int))
            chosen = examples.select(places.tolist())
            return Trial(_tokenized(opened, chosen), "examples of the development set", chosen.pairs is not None)
    kind = opened.task.kind if opened.task is not None else "classification"
    known = opened.task.pairs if opened.task is not None else None
    pair = known if known is not None else opened.data.pair_column is not None or kind == "question-answering"
    sentences = Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8").splitlines()
    shipped = KINDS[kind].typed(sentences, sentences[::-1] if pair else None)
    return Trial(_tokenized(opened, shipped), "built-in sentences", pair)


def labelled_examples(opened: Opened, config: DataConfig, *, development: bool) -> TokenizedExamples:
    """Labelled examples to judge a loss by: the development set if somebody named it, else the validation slice.

    Raises:
        CheckpointError: if the model does not say how it was trained.
        ConfigError: settings that contradict each other.
        DataError: data that cannot be read.
    """
    if development and opened.task is not None:
        return _tokenized(opened, next(iter(load_evaluation_data(config, opened.task).values())))
    return _tokenized(opened, validation_slice(opened, config))


def calibration_batches(opened: Opened, config: DataConfig) -> list[dict[str, Tensor]]:
    """Single training examples, spread evenly over the training rows, to measure the range of activations on.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: data that cannot be read.
    """
    examples = load_task_data(config, seed=0).train
    places = np.unique(np.linspace(0, len(examples) - 1, _CALIBRATED).astype(int))
    tokens = _tokenized(opened, examples.select(places.tolist()))
    return [tokens.collate([at]) for at in range(len(tokens))]


def _tokenized(opened: Opened, examples: Examples) -> TokenizedExamples:
    return opened.prepared(examples, cache=False)


def trial_batches(examples: TokenizedExamples, *, choices: bool = False) -> Iterator[dict[str, Tensor]]:
    """The examples as a server might send them: one alone, then batches of mixed lengths, padded.

    Args:
        examples: at least two.
        choices: for multiple choice: two examples stand for one question, ``(batch, 2, tokens)``.
    """
    every = list(range(len(examples) - len(examples) % 2))
    alone = 2 if choices else 1
    groups = [every[:alone], *(every[at : at + _BATCH] for at in range(alone, len(every), _BATCH))]
    for group in groups:
        batch = {name: tensor for name, tensor in examples.collate(group).items() if name != "labels"}
        yield {name: tensor.unflatten(0, (-1, 2)) for name, tensor in batch.items()} if choices else batch
