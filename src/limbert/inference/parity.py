"""Parity of a runtime with torch: compared outputs, and the examples to compare, measure and calibrate on."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbert.core.config import DataConfig
from limbert.data.load import load_evaluation_data, load_task_data
from limbert.data.readers import Examples
from limbert.data.task_registry import TASK_HANDLERS
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, DataError, ExportError
from limbert.inference.load import LoadedCheckpoint, load_validation_split
from limbert.inference.predict import inference_inputs
from limbert.inference.runtimes import Runtime

TOLERANCE = 1e-4  # of the largest output; another order of summation differs by about 1e-6, errors by far more
_TOKEN_OUTPUTS = ("start_logits", "end_logits")
_PARITY_EXAMPLES = 48
_PARITY_BATCH_SIZE = 8
_CALIBRATION_EXAMPLES = 128


@dataclass(frozen=True)
class ParityResult:
    """The outputs of an exported model compared with its source's."""

    examples: int  # compared
    max_relative_difference: float  # largest difference of two outputs, as a fraction of the largest output
    agreement: float  # fraction of equal predictions (the largest output along the last axis)


def compare_outputs(source: Runtime, exported: Runtime, batches: Iterable[Mapping[str, Tensor]]) -> ParityResult:
    """Run both on the same batches and compare their outputs, except at padding."""
    examples, largest, difference = 0, 0.0, 0.0
    agreements: list[Tensor] = []
    for batch in batches:
        expected, actual = source.outputs(batch), exported.outputs(batch)
        if {*expected} - {*actual}:
            raise ExportError(f"the exported model returns {', '.join(actual)}; expected {', '.join(expected)}")
        examples += len(batch["input_ids"])
        for name, source_output in expected.items():
            output = actual[name]
            if name == "widths":  # of a policy: what ran
                if not torch.equal(output, source_output):
                    raise ExportError("the exported policy runs other layers or widths than its source")
                continue
            if output.shape != source_output.shape:
                shapes = f"{tuple(output.shape)}; expected {tuple(source_output.shape)}"
                raise ExportError(f"{name} of the exported model is {shapes}")
            if name in _TOKEN_OUTPUTS or source_output.ndim == 3:
                is_token = batch["attention_mask"].bool()
                source_output, output = source_output[is_token], output[is_token]
            if not bool(output.isfinite().all()):
                raise ExportError(f"{name} of the exported model holds values that are not finite")
            largest = max(largest, float(source_output.abs().max()))
            difference = max(difference, float((source_output - output).abs().max()))
            if source_output.ndim > 1:
                agreements.append((source_output.argmax(-1) == output.argmax(-1)).flatten())
    agreement = float(torch.cat(agreements).float().mean()) if agreements else 1.0
    return ParityResult(examples, difference / max(largest, 1e-12), agreement)


def require_parity(parity: ParityResult) -> None:
    """Raise ExportError for an export whose outputs differ by more than rounding."""
    if parity.max_relative_difference > TOLERANCE:
        raise ExportError(
            f"the exported model's outputs do not match its source: on {parity.examples} examples they differ by up "
            f"to {parity.max_relative_difference:.2g} of the largest one; allowed: {TOLERANCE:g}; nothing was written"
        )


@dataclass(frozen=True)
class ParityExamples:
    """The examples that an export is verified on."""

    examples: TokenizedExamples  # tokenised
    description: str  # what they are
    takes_pairs: bool  # whether the model's inputs are pairs of texts


def parity_examples(checkpoint: LoadedCheckpoint, config: DataConfig, *, required: bool) -> ParityExamples:
    """Examples spread evenly over the development set; built-in sentences if it cannot be read.

    With ``required`` data that cannot be read is an error, because the user named it.
    """
    task = checkpoint.task
    if task is not None:
        try:
            examples = next(iter(load_evaluation_data(config, task).values()))
        except (DataError, ConfigError):
            if required:
                raise
        else:
            selected = spread_examples(examples, _PARITY_EXAMPLES)
            tokenized = checkpoint.tokenize(selected)
            return ParityExamples(tokenized, "examples of the development set", selected.pairs is not None)
    task_type = task.task_type if task is not None else "classification"
    takes_pairs = task.has_pairs if task is not None else None
    if takes_pairs is None:
        takes_pairs = checkpoint.data_config.pair_column is not None or task_type == "question-answering"
    sentences = Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8").splitlines()
    built_in = TASK_HANDLERS[task_type].make_examples(sentences, sentences[::-1] if takes_pairs else None)
    return ParityExamples(checkpoint.tokenize(built_in), "built-in sentences", takes_pairs)


def labelled_examples(
    checkpoint: LoadedCheckpoint, config: DataConfig, *, use_dev_set: bool, limit: int | None = None
) -> TokenizedExamples:
    """Labelled examples to measure the loss of int8 on: the development set, or the validation split.

    With ``limit`` about as many, spread evenly.
    """
    if use_dev_set and checkpoint.task is not None:
        examples = next(iter(load_evaluation_data(config, checkpoint.task).values()))
    else:
        examples = load_validation_split(checkpoint, config)
    return checkpoint.tokenize(spread_examples(examples, limit) if limit else examples)


def calibration_batches(checkpoint: LoadedCheckpoint, config: DataConfig) -> list[dict[str, Tensor]]:
    """Single training examples, spread evenly over the training set, to calibrate the range of activations."""
    selected = spread_examples(load_task_data(replace(config, augmented=None), seed=0).train, _CALIBRATION_EXAMPLES)
    tokens = checkpoint.tokenize(selected)
    return [inference_inputs(tokens, [index]) for index in range(len(tokens))]


def spread_examples(examples: Examples, count: int) -> Examples:
    """About ``count`` examples at even distances."""
    return examples.select(np.unique(np.linspace(0, len(examples) - 1, count).astype(int)).tolist())


def parity_batches(examples: TokenizedExamples) -> Iterator[dict[str, Tensor]]:
    """At least one example as a server might receive them: one alone, then padded batches of mixed lengths."""
    indices = list(range(len(examples)))
    starts = range(1, len(indices), _PARITY_BATCH_SIZE)
    for group in (indices[:1], *(indices[start : start + _PARITY_BATCH_SIZE] for start in starts)):
        yield inference_inputs(examples, group)
