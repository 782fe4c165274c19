"""Whether an exported model answers as its source does: the comparison that every export must pass."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbert.core.config import DataConfig
from limbert.data.load import load_evaluation_data, load_task_data
from limbert.data.readers import Examples
from limbert.data.task_registry import TASK_HANDLERS, compute_task_metrics
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.errors import ConfigError, DataError, ExportError
from limbert.inference.load import LoadedCheckpoint, load_validation_split
from limbert.inference.predict import LogitsCollector
from limbert.inference.runtimes import Runtime
from limbert.model.outputs import logits_of

TOLERANCE = 1e-4  # of the largest output: other orders of summation differ by some 1e-6, errors by far more
_TOKEN_OUTPUTS = ("start_logits", "end_logits")


@dataclass(frozen=True)
class ParityResult:
    """How near an exported model is to its source.

    Attributes:
        examples: compared.
        difference: largest difference of two outputs, as a share of the largest output.
        agreement: share of the answers (the largest output along the last axis) that are the same.
    """

    examples: int
    max_relative_difference: float
    agreement: float


def compare_outputs(source: Runtime, exported: Runtime, batches: Iterable[Mapping[str, Tensor]]) -> ParityResult:
    """Run both on the same batches. What stands at padding is nobody's answer and is not compared.

    Raises:
        ExportError: if the outputs have other names or shapes, or one is not finite.
    """
    examples, largest, difference = 0, 0.0, 0.0
    same: list[Tensor] = []
    for batch in batches:
        expected, found = source.outputs(batch), exported.outputs(batch)
        if {*expected} - {*found}:
            raise ExportError(f"the exported model returns {', '.join(found)}; expected {', '.join(expected)}")
        examples += len(batch["input_ids"])
        for name, wanted in expected.items():
            got = found[name]
            if got.shape != wanted.shape:
                raise ExportError(f"{name} of the exported model is {tuple(got.shape)}; expected {tuple(wanted.shape)}")
            if name in _TOKEN_OUTPUTS or wanted.ndim == 3:
                real = batch["attention_mask"].bool()
                wanted, got = wanted[real], got[real]
            if not bool(got.isfinite().all()):
                raise ExportError(f"{name} of the exported model holds values that are not finite")
            largest = max(largest, float(wanted.abs().max()))
            difference = max(difference, float((wanted - got).abs().max()))
            if wanted.ndim > 1:
                same.append((wanted.argmax(-1) == got.argmax(-1)).flatten())
    agreement = float(torch.cat(same).float().mean()) if same else 1.0
    return ParityResult(examples, difference / max(largest, 1e-12), agreement)


def require_parity(parity: ParityResult) -> None:
    """Refuse an export that differs by more than rounding.

    Raises:
        ExportError: naming the difference.
    """
    if parity.max_relative_difference > TOLERANCE:
        raise ExportError(
            f"the exported model does not answer as its source: on {parity.examples} examples outputs differ by up "
            f"to {parity.max_relative_difference:.2g} of the largest one; allowed: {TOLERANCE:g}; nothing was written"
        )


_BATCH_SIZE = 16
_LATENCY_ROUNDS = 40


@dataclass(frozen=True)
class RuntimeBenchmark:
    """How good and how fast one exported model is.

    Attributes:
        metrics: by name, on the labelled examples.
        latency_ms: median of one text at a time, texts of real lengths.
        throughput: examples a second in batches of 16 of similar length.
        file_bytes: its weights' file.
    """

    metrics: dict[str, float]
    latency_ms: float
    throughput: float
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def benchmark_runtimes(
    runtimes: Mapping[str, tuple[Runtime, int]],
    examples: TokenizedExamples,
    *,
    task: Task,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, RuntimeBenchmark]:
    """The quality of several exported models, taking turns, so that a noisy machine is noisy for all.

    Args:
        runtimes: by name, each with the size of its file in bytes.
        examples: labelled.
        task: how logits become metrics.
        progress: called with passes done and in all.
    """
    batches = evaluation_batches(examples.lengths, batch_size=_BATCH_SIZE)
    logits = {name: LogitsCollector(examples) for name in runtimes}
    together = dict.fromkeys(runtimes, 0.0)
    alone: dict[str, list[float]] = {name: [] for name in runtimes}
    passes = [*batches, *([index % len(examples)] for index in range(_LATENCY_ROUNDS))]
    for done, places in enumerate(passes):
        inputs = {name: tensor for name, tensor in examples.collate(places).items() if name != "labels"}
        for name, (runtime, _) in runtimes.items():
            start = time.perf_counter()
            outputs = runtime.outputs(inputs)
            seconds = time.perf_counter() - start
            if done < len(batches):
                logits[name].add(places, logits_of(outputs), inputs["attention_mask"])
                together[name] += seconds
            else:
                alone[name].append(seconds)
        progress(done + 1, len(passes))
    return {
        name: RuntimeBenchmark(
            compute_task_metrics(task, logits[name].logits.numpy(), examples),
            1000 * statistics.median(alone[name]),
            len(examples) / together[name],
            size,
        )
        for name, (_, size) in runtimes.items()
    }


_PARITY_EXAMPLES = 48  # examples that every export answers before it takes its place
_TRIED_BATCH = 8
_CALIBRATION_EXAMPLES = 128  # training examples that activations are scaled by


@dataclass(frozen=True)
class ParityExamples:
    """What an export is tried on.

    Attributes:
        examples: tokenised.
        origin: what they are, in words.
        pair: whether the model's inputs are pairs of texts.
    """

    examples: TokenizedExamples
    description: str
    takes_pairs: bool


def parity_examples(opened: LoadedCheckpoint, config: DataConfig, *, required: bool) -> ParityExamples:
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
            places = np.unique(np.linspace(0, len(examples) - 1, _PARITY_EXAMPLES).astype(int))
            chosen = examples.select(places.tolist())
            return ParityExamples(
                _tokenize(opened, chosen), "examples of the development set", chosen.pairs is not None
            )
    kind = opened.task.task_type if opened.task is not None else "classification"
    known = opened.task.has_pairs if opened.task is not None else None
    pair = known if known is not None else opened.data_config.pair_column is not None or kind == "question-answering"
    sentences = Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8").splitlines()
    shipped = TASK_HANDLERS[kind].make_examples(sentences, sentences[::-1] if pair else None)
    return ParityExamples(_tokenize(opened, shipped), "built-in sentences", pair)


def labelled_examples(opened: LoadedCheckpoint, config: DataConfig, *, use_dev_set: bool) -> TokenizedExamples:
    """Labelled examples to judge a loss by: the development set if somebody named it, else the validation slice.

    Raises:
        CheckpointError: if the model does not say how it was trained.
        ConfigError: settings that contradict each other.
        DataError: data that cannot be read.
    """
    if use_dev_set and opened.task is not None:
        return _tokenize(opened, next(iter(load_evaluation_data(config, opened.task).values())))
    return _tokenize(opened, load_validation_split(opened, config))


def calibration_batches(opened: LoadedCheckpoint, config: DataConfig) -> list[dict[str, Tensor]]:
    """Single training examples, spread evenly over the training rows, to measure the range of activations on.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: data that cannot be read.
    """
    examples = load_task_data(config, seed=0).train
    places = np.unique(np.linspace(0, len(examples) - 1, _CALIBRATION_EXAMPLES).astype(int))
    tokens = _tokenize(opened, examples.select(places.tolist()))
    return [tokens.collate([at]) for at in range(len(tokens))]


def _tokenize(opened: LoadedCheckpoint, examples: Examples) -> TokenizedExamples:
    return opened.tokenize(examples, cache=False)


def parity_batches(examples: TokenizedExamples, *, multiple_choice: bool = False) -> Iterator[dict[str, Tensor]]:
    """The examples as a server might send them: one alone, then batches of mixed lengths, padded.

    Args:
        examples: at least two.
        choices: for multiple choice: two examples stand for one question, ``(batch, 2, tokens)``.
    """
    every = list(range(len(examples) - len(examples) % 2))
    alone = 2 if multiple_choice else 1
    groups = [every[:alone], *(every[at : at + _TRIED_BATCH] for at in range(alone, len(every), _TRIED_BATCH))]
    for group in groups:
        batch = {name: tensor for name, tensor in examples.collate(group).items() if name != "labels"}
        yield {name: tensor.unflatten(0, (-1, 2)) for name, tensor in batch.items()} if multiple_choice else batch
