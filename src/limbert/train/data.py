"""From datasets to the batches of training steps: grouped by length, each process with its own examples."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbert.core.config import TaskType
from limbert.core.task_types import IGNORE_INDEX
from limbert.data.tokenize import training_batches
from limbert.errors import ConfigError, DataError
from limbert.method.gate_targets import balanced_class_weights
from limbert.model.families import max_input_length

Batch = dict[str, Tensor]
LABEL_NAMES = ("labels", "label", "label_ids", "start_positions", "end_positions")


class IndexDataset:
    """A dataset of tokenised examples, with the methods that a training needs (those of `TokenizedExamples`).

    Args:
        source: examples by index: dictionaries.
        collator: makes a batch of a list of examples.
        columns: keys of an example that the collator is given; None gives all.
    """

    def __init__(
        self, source: Any, *, collator: Callable[[list[Any]], Mapping[str, Any]], columns: Sequence[str] | None = None
    ) -> None:
        if isinstance(source, IterableDataset | datasets.IterableDataset):
            raise ConfigError(f"{type(source).__name__} has no length; give a dataset with examples by index")
        self.source, self._collator, self._columns = source, collator, columns

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, ``(examples,)``."""
        return np.array([len(ids) for ids in self._column("input_ids")])

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> Sequence[list[int]]:
        """One epoch of batches of indices, every example once."""
        return training_batches(self.lengths, batch_size=batch_size, seed=seed, epoch=epoch)

    def collate(self, indices: Sequence[int]) -> Batch:
        """The batch of some examples; every tensor has one entry for each."""
        fetch = getattr(self.source, "__getitems__", lambda indices: [self.source[index] for index in indices])
        examples = fetch([*indices])
        if self._columns is not None:
            examples = [{key: example[key] for key in example if key in self._columns} for example in examples]
        return dict(self._collator(examples))

    def prepare_inputs(self, batch: Batch) -> Batch:
        """The network's inputs and ``labels`` of a batch or some of its examples."""
        return batch

    def select(self, indices: Sequence[int] | np.ndarray) -> "IndexDataset":
        """Some of the examples, in the order given."""
        subset: Callable[[Any], Any] = partial(Subset, self.source)
        chosen = getattr(self.source, "select", subset)(indices)
        return IndexDataset(chosen, collator=self._collator, columns=self._columns)

    @property
    def labels(self) -> Tensor | None:
        """All labels: class ids ``(labels,)``, values ``(examples,)``, ``(examples, classes)``, or None."""
        names = getattr(self.source, "column_names", None) or [*self.source[0]]
        name = next((name for name in LABEL_NAMES[:3] if name in names), None)
        labels = None if name is None else torch.from_numpy(np.hstack(self._column(name)))
        return labels.reshape(len(self), -1).squeeze(1) if labels is not None and labels.is_floating_point() else labels

    def _column(self, name: str) -> list[Any]:
        if isinstance(self.source, datasets.Dataset):
            return list(self.source[name])
        return [self.source[index][name] for index in range(len(self))]


class Indices(Dataset[int]):
    """The indices of a dataset, also beyond its end, for a DataLoader whose ``collate_fn`` fetches the examples."""

    def __init__(self, dataset: Any) -> None:
        self._length = len(dataset)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


def index_dataset(dataset: Any, *, network: PreTrainedModel, tokenizer: Any, collator: Any, args: Any) -> Any:
    """A dataset, or each of several by name, with the methods of `IndexDataset`; what has them, and None, stay.

    A `datasets.Dataset` with text columns is tokenised, label names become the network's ids.

    Raises:
        ConfigError: without a tokenizer for texts, or if the text columns are not clear.
        DataError: for a label name that the network does not have.
    """
    if dataset is None or isinstance(dataset, str) or hasattr(dataset, "collate"):
        return dataset
    if isinstance(dataset, dict):
        options = {"network": network, "tokenizer": tokenizer, "collator": collator, "args": args}
        return {name: index_dataset(part, **options) for name, part in dataset.items()}
    if isinstance(dataset, datasets.Dataset):
        dataset = _with_label_ids(dataset, network.config.label2id or {})
        if "input_ids" not in dataset.column_names:
            max_length = min(args.max_length, max_input_length(network.config))
            dataset = _tokenize(dataset, tokenizer, max_length=max_length, text_columns=args.text_columns)
    columns = [*inspect.signature(network.forward).parameters, *LABEL_NAMES]
    return IndexDataset(dataset, collator=collator, columns=columns if args.remove_unused_columns else None)


def _with_label_ids(dataset: datasets.Dataset, label2id: Mapping[Any, Any]) -> datasets.Dataset:
    name = next((name for name in LABEL_NAMES[:2] if name in dataset.column_names), None)
    if name is None or not _is_string(dataset.features[name]):
        return dataset
    unknown = sorted({*map(str, dataset.unique(name))} - {*map(str, label2id)})
    if unknown:
        raise DataError(
            f"label {unknown[0]!r} in column {name!r} is not a label of the model; its labels: "
            f"{', '.join(map(str, label2id))}; give them to from_pretrained as id2label"
        )
    return dataset.remove_columns(name).add_column("labels", [label2id[label] for label in dataset[name]])


def _tokenize(
    dataset: datasets.Dataset, tokenizer: Any, *, max_length: int, text_columns: Sequence[str] | None
) -> datasets.Dataset:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError("the dataset has no column input_ids; give a tokenizer as processing_class")
    strings = [name for name, feature in dataset.features.items() if _is_string(feature)]
    columns = [*(text_columns or [name for name in strings if name not in (*LABEL_NAMES, "id", "idx")])]
    if not 1 <= len(columns) <= 2 or not {*columns} <= {*strings}:
        raise ConfigError(
            f"text columns are {columns}; set text_columns to one or two of the columns with text: {', '.join(strings)}"
        )

    def encode(batch: Mapping[str, list[str]]) -> Any:
        return tokenizer(*(batch[name] for name in columns), truncation=True, max_length=max_length)

    return dataset.map(encode, batched=True, remove_columns=strings)


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")  # large: from a pandas DataFrame


class StepBatches(Sampler[list[int]]):
    """Batch sampler of the examples of all processes; with gradient accumulation a step's batch in several parts.

    The order follows from seed and epoch alone. A step's examples do not depend on the number of parts, but for the
    last, smaller batch, which then comes last.

    Args:
        dataset: with ``batches``.
        batch_size: examples of one part, over all processes.
        parts: of a step.
        seed: of the order.
    """

    def __init__(self, dataset: Any, *, batch_size: int, parts: int, seed: int) -> None:
        self._dataset, self._batch_size, self._parts, self._seed, self._epoch = dataset, batch_size, parts, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self._epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self._dataset), self._batch_size * self._parts)
        return full * self._parts + -(-rest // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        step_size = self._batch_size * self._parts
        batches = self._dataset.batches(batch_size=step_size, seed=self._seed, epoch=self._epoch)
        if self._parts > 1:
            batches = sorted(batches, key=lambda batch: len(batch) < step_size)
        for batch in batches:
            yield from (batch[start : start + self._batch_size] for start in range(0, len(batch), self._batch_size))


@dataclass(frozen=True)
class LossScale:
    """Fraction of a step's batch that one process has. Mean losses times this sum to the means over the whole batch.

    Attributes:
        tokens: its fraction of the tokens that are not padding.
        labels: its fraction of the labels (with class weights: of their weights); all examples where labels are
            values, else those that are not ignored; 0 where the whole batch has none.
        batch_size: examples of the whole batch.
    """

    tokens: float
    labels: float
    batch_size: int


def shard_batch(
    batch: Batch, *, rank: int, world_size: int, class_weights: Tensor | None = None
) -> tuple[Batch, LossScale]:
    """Every n-th example of a batch, n being the number of processes, since a batch is sorted by length.

    A process without an example takes the first one with a scale of 0, so that its passes reach the same weights as the
    others'.
    """

    def count_labels(rows: Batch) -> float:
        labels = rows.get("labels", rows.get("start_positions"))
        if labels is None or labels.is_floating_point():
            return 0.0 if labels is None else float(len(labels))
        counted = labels[labels != IGNORE_INDEX]
        return float(len(counted) if class_weights is None else class_weights[counted].sum())

    size = len(batch["attention_mask"])
    if world_size == 1:
        return batch, LossScale(1.0, float(count_labels(batch) > 0), size)
    rows = slice(rank, None, world_size) if rank < size else slice(0, 1)
    part = {name: tensor[rows] for name, tensor in batch.items()}
    if rank >= size:
        return part, LossScale(0.0, 0.0, size)
    tokens = float(part["attention_mask"].sum() / batch["attention_mask"].sum().clamp_min(1))
    return part, LossScale(tokens, count_labels(part) / max(1e-9, count_labels(batch)), size)


def pop_labels(batch: Batch) -> Tensor | None:
    """Take the labels out of a batch; those of question answering as ``(batch, 2)``, first and last token."""
    if "start_positions" in batch:
        return torch.stack([batch.pop("start_positions"), batch.pop("end_positions")], dim=-1)
    return batch.pop("labels", None)


def resolve_class_weights(
    weights: Sequence[float] | str | None, labels: Tensor | None, *, num_labels: int, task_type: TaskType
) -> Tensor | None:
    """The weight of each class in the label loss, ``(classes,)``; with several labels that of an example that has it.

    Args:
        weights: one number per class; ``balanced``: inversely proportional to the frequency of the class, or with
            several labels the number of examples without it for each with it; None for none.
        labels: of the training data.
        num_labels: classes.
        task_type: what the labels mean.

    Raises:
        ConfigError: if there is not one weight per class, or the labels are no classes.
    """
    if weights is None:
        return None
    has_classes = labels is not None and task_type not in ("regression", "question-answering")
    if labels is not None and has_classes and weights == "balanced":
        if task_type == "multi-label":
            positive = labels.sum(dim=0).clamp_min(1.0)
            return (len(labels) - positive) / positive
        classes = labels.argmax(dim=-1) if labels.ndim > 1 else labels[labels != IGNORE_INDEX]
        return balanced_class_weights(classes, num_labels)
    if isinstance(weights, str) or len(weights) != num_labels or not has_classes:
        allowed = f"'balanced' or {num_labels} numbers, one per class"
        raise ConfigError(f"class_weights is {weights!r}; it must be {allowed}")
    return torch.tensor([*weights], dtype=torch.float32)
