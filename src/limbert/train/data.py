"""From datasets to the batches of training steps: grouped by length, each process with its own rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler
from transformers import PreTrainedTokenizerBase

from limbert.core.task_types import IGNORE_INDEX
from limbert.data.tokenize import training_batches
from limbert.errors import ConfigError, DataError
from limbert.method.gate_targets import balanced_class_weights

Batch = dict[str, Tensor]


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


class IndexDataset(Dataset[int]):
    """A dataset seen by index: how long its examples are, in which batches an epoch visits them, how one is collated.

    Batches are made of indices in one call, not example by example.

    Args:
        dataset: tokenised examples. One with its own ``collate(indices)``, ``batches(batch_size=, seed=, epoch=)`` and
            ``prepare_inputs(batch)`` (such as `TokenizedExamples`) makes its batches itself.
        collator: makes a batch of a list of examples, for all other datasets.
        columns: keys of an example that the collator is given.
    """

    def __init__(
        self, dataset: Any, *, collator: Callable[[list[Any]], Mapping[str, Any]], columns: Sequence[str] | None
    ) -> None:
        if isinstance(dataset, IterableDataset | datasets.IterableDataset):
            raise ConfigError(f"{type(dataset).__name__} has no length; give a dataset with examples by index")
        self._dataset, self._collator, self._columns = dataset, collator, columns
        self._makes_batches = hasattr(dataset, "collate")
        self._lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, ``(examples,)``; zeros where they are not known."""
        if self._lengths is None:
            self._lengths = self._measure_lengths()
        return self._lengths

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> Sequence[list[int]]:
        """One epoch of batches of indices, every example once."""
        if self._makes_batches:
            found: Sequence[list[int]] = self._dataset.batches(batch_size=batch_size, seed=seed, epoch=epoch)
            return found
        return training_batches(self.lengths, batch_size=batch_size, seed=seed, epoch=epoch)

    def collate(self, indices: Sequence[int]) -> Batch:
        """The batch of some examples; every tensor has a row for each."""
        if self._makes_batches:
            made: Batch = self._dataset.collate(indices)
            return made
        fetch = getattr(self._dataset, "__getitems__", None)
        examples = fetch([*indices]) if fetch is not None else [self._dataset[index] for index in indices]
        if self._columns is not None:
            examples = [{key: row[key] for key in row if key in self._columns} for row in examples]
        return dict(self._collator(examples))

    def prepare_inputs(self, batch: Batch) -> Batch:
        """The network's inputs and ``labels`` of a batch or some of its rows."""
        prepare = getattr(self._dataset, "prepare_inputs", None)
        return batch if prepare is None else prepare(batch)

    def select(self, indices: Sequence[int] | np.ndarray) -> "IndexDataset":
        """Some of the examples, in the order given."""
        if hasattr(self._dataset, "select"):
            chosen = self._dataset.select(indices)
        else:
            chosen = torch.utils.data.Subset(self._dataset, [*indices])
        return IndexDataset(chosen, collator=self._collator, columns=self._columns)

    def labels(self) -> Tensor | None:
        """All class ids ``(labels,)``, without ignored ones; None where labels are no class ids."""
        if self._makes_batches:
            values = self._dataset.labels
        elif isinstance(self._dataset, datasets.Dataset):
            name = next((name for name in ("labels", "label", "label_ids") if name in self._dataset.column_names), None)
            values = None if name is None else torch.tensor(np.hstack(self._dataset[name][:]))
        else:
            values = torch.tensor(np.hstack([self._dataset[index]["labels"] for index in range(len(self))]))
        if values is None or values.is_floating_point():
            return None
        flat: Tensor = values.flatten()
        return flat[flat != IGNORE_INDEX]

    def _measure_lengths(self) -> np.ndarray:
        if self._makes_batches:
            known: np.ndarray = getattr(self._dataset, "lengths", np.zeros(len(self), dtype=np.int64))
            return known
        if isinstance(self._dataset, datasets.Dataset):
            return np.array([len(ids) for ids in self._dataset["input_ids"]])
        return np.array([len(self._dataset[index]["input_ids"]) for index in range(len(self))])


class StepBatches(Sampler[list[int]]):
    """Batch sampler of the examples of all processes; with gradient accumulation a step's batch in several parts.

    The order follows from seed and epoch alone. A step's examples do not depend on how many parts it is split into,
    but for the last, smaller batch, which then comes last.

    Args:
        dataset: sampled.
        batch_size: examples of one part, over all processes.
        parts: of a step.
        seed: of the order.
    """

    def __init__(self, dataset: IndexDataset, *, batch_size: int, parts: int, seed: int) -> None:
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


def collate_shard(
    indices: Sequence[int], *, dataset: IndexDataset, rank: int, world_size: int, class_weights: Tensor | None
) -> dict[str, Any]:
    """This process's rows of a batch, with ``loss_scale``."""
    part, scale = shard_batch(dataset.collate(indices), rank=rank, world_size=world_size, class_weights=class_weights)
    return dataset.prepare_inputs(part) | {"loss_scale": scale}


def shard_batch(
    batch: Batch, *, rank: int, world_size: int, class_weights: Tensor | None = None
) -> tuple[Batch, LossScale]:
    """Every n-th row of a batch, n being the number of processes, since the rows of a batch are sorted by length.

    A process without a row takes the first one with a scale of 0, so that its passes reach the same weights as the
    others'.
    """
    size = len(batch["attention_mask"])
    if world_size == 1:
        return batch, LossScale(1.0, float(_count_labels(batch, class_weights) > 0), size)
    rows = slice(rank, None, world_size) if rank < size else slice(0, 1)
    part = {name: tensor[rows] for name, tensor in batch.items()}
    if rank >= size:
        return part, LossScale(0.0, 0.0, size)
    tokens, labels = (
        counted(part) / max(1.0, counted(batch))
        for counted in (_count_tokens, lambda rows: _count_labels(rows, class_weights))
    )
    return part, LossScale(tokens, labels, size)


def _count_tokens(batch: Batch) -> float:
    return float(batch["attention_mask"].sum())


def _count_labels(batch: Batch, class_weights: Tensor | None) -> float:
    labels = batch.get("labels", batch.get("start_positions"))
    if labels is None:
        return 0.0
    if labels.is_floating_point():
        return float(len(labels))
    counted = labels[labels != IGNORE_INDEX]
    return float(len(counted) if class_weights is None else class_weights[counted].sum())


def pop_labels(batch: Batch) -> Tensor | None:
    """Take the labels out of a batch; those of question answering as ``(batch, 2)``, first and last token."""
    if "start_positions" in batch:
        return torch.stack([batch.pop("start_positions"), batch.pop("end_positions")], dim=-1)
    return batch.pop("labels", None)


def class_weights_for(
    weights: Sequence[float] | str | None, dataset: IndexDataset, *, num_labels: int
) -> Tensor | None:
    """The weight of each class, ``(classes,)``, as given or ``balanced``: inversely proportional to its frequency.

    Raises:
        ConfigError: if there is not one weight a class, or the labels are no class ids.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        labels = dataset.labels()
        if weights != "balanced" or labels is None:
            raise ConfigError(f"class_weights is {weights!r}; it must be 'balanced' or a number for each class")
        return balanced_class_weights(labels, num_labels)
    if len(weights) != num_labels:
        raise ConfigError(
            f"class_weights has {len(weights)} numbers; it must have one for each of {num_labels} classes"
        )
    return torch.tensor([*weights], dtype=torch.float32)


def tokenized(
    dataset: Any,
    tokenizer: Any,
    *,
    max_length: int,
    text_columns: Sequence[str] | None,
    label2id: Mapping[str, int],
) -> Any:
    """A dataset as it is, or a `datasets.Dataset` with text columns tokenised; labels that are names become ids.

    Args:
        dataset: of any type; only a `datasets.Dataset` without ``input_ids`` is changed.
        tokenizer: makes ``input_ids``.
        max_length: longest input in tokens.
        text_columns: one, or two for pairs; None takes the columns of strings, without the label.
        label2id: ids of label names.

    Raises:
        ConfigError: if there is no tokenizer, or the text columns are not clear.
        DataError: for a label name that the model does not have.
    """
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    label = next((name for name in ("labels", "label") if name in dataset.column_names), None)
    if label is not None and _is_string(dataset.features[label]):
        unknown = {*dataset.unique(label)} - {*label2id}
        if unknown:
            raise DataError(
                f"label {sorted(map(str, unknown))[0]!r} in column {label!r} is not a label of the model; "
                f"its labels: {', '.join(label2id)}; give them to from_pretrained as label2id and id2label"
            )
        ids = [label2id[name] for name in dataset[label]]
        dataset = dataset.remove_columns(label).add_column("labels", ids)
    if "input_ids" in dataset.column_names:
        return dataset
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError("the dataset has no column input_ids; give a tokenizer as processing_class")
    strings = [name for name, feature in dataset.features.items() if _is_string(feature)]
    columns = [*(text_columns or [name for name in strings if name not in ("label", "labels", "idx", "id")])]
    if not 1 <= len(columns) <= 2 or not {*columns} <= {*strings}:
        raise ConfigError(
            f"text columns are {columns}; set text_columns to one or two of the columns with text: {', '.join(strings)}"
        )

    def encode(batch: Mapping[str, list[str]]) -> Any:
        return tokenizer(*(batch[name] for name in columns), truncation=True, max_length=max_length)

    return dataset.map(encode, batched=True, remove_columns=strings, desc="tokenising")


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")  # large: from a pandas DataFrame


def soft_labels(hard: Tensor, num_outputs: int) -> Tensor:
    """Class ids ``(examples,)`` as probabilities ``(examples, classes)``."""
    return F.one_hot(hard, num_outputs).float()
