"""Splitting examples: a stratified validation split, and splits by whole groups."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from limbert.core.config import TrainConfig
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.errors import ConfigError, DataError


def train_validation_split(examples: Examples, task: Task, config: TrainConfig) -> tuple[Examples, Examples]:
    """The training examples of a run, and its validation split."""
    fraction = min(config.validation, config.validation_limit / len(examples))
    return split_validation(examples, task, fraction=fraction, seed=config.seed)


def split_validation(examples: Examples, task: Task, *, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Cut a validation split of at least one example from the training examples, both in their old order.

    Stratified: after shuffling, the examples are sorted by label and every (1 / fraction)-th is taken, so that
    classes (and the range of scores) keep their fractions. One example of each class stays in training. A set of
    labels counts as one label. Examples in groups are cut by whole groups instead.
    """
    if examples.groups is not None:
        return split_by_group(examples, fraction=fraction, seed=seed)
    if not 0 < fraction < 1:
        raise ConfigError(f"validation fraction is {fraction}; it must be between 0 and 1")
    if examples.labels is None:
        raise DataError("examples without labels cannot be split for validation; expected labelled examples")
    values: list[Any] = [tuple(sorted({*label})) if isinstance(label, tuple) else label for label in examples.labels]
    numbers = {value: number for number, value in enumerate(sorted({*values}))}
    labels = np.asarray([numbers[value] for value in values])
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    strata = labels if task.task_type == "classification" else np.zeros_like(labels)
    _, stays = np.unique(strata[shuffled], return_index=True)  # the first of each class
    candidates = np.delete(shuffled, stays)
    if not len(candidates):
        raise DataError(f"{len(examples)} training examples are too few for a validation split; expected two per class")
    ordered = candidates[np.argsort(labels[candidates], kind="stable")]
    step = min(max(fraction * len(labels), 1.0) / len(ordered), 1.0)
    counts = np.floor(np.arange(len(ordered) + 1) * step + 0.5)  # rises by one at every example that is taken
    return _partition(examples, ordered[np.diff(counts) > 0])


def split_by_group(examples: Examples, *, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Hold out whole groups: articles with all their questions, or, if there are no groups, equal texts.

    In random order, groups that still fit into the fraction of the examples are held out; if none fits, the smallest.

    Returns:
        (the other examples, the held-out examples), both in their old order.
    """
    keys: tuple[Any, ...] = examples.groups or tuple(zip(examples.texts, examples.pairs or examples.texts, strict=True))
    sizes = Counter(keys)
    if len(sizes) < 2:
        raise DataError(f"{len(examples)} examples are one group (article or text); a split needs at least two groups")
    names = list(sizes)
    taken: set[Any] = set()
    room = fraction * len(examples)
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names)).tolist()]
    for name in order:
        if sizes[name] <= room and len(taken) < len(names) - 1:
            taken.add(name)
            room -= sizes[name]
    taken = taken or {min(order, key=sizes.__getitem__)}
    return _partition(examples, np.flatnonzero([key in taken for key in keys]))


def _partition(examples: Examples, indices: np.ndarray) -> tuple[Examples, Examples]:
    """The other examples, and those at the indices, both in their old order."""
    taken = np.isin(np.arange(len(examples)), indices)
    return examples.select(np.flatnonzero(~taken).tolist()), examples.select(np.flatnonzero(taken).tolist())


def reorder_labels(examples: Examples, task: Task, target_task: Task) -> Examples:
    """Examples of ``task`` with the class ids of ``target_task``, which has the same labels."""
    if examples.labels is None or task.labels == target_task.labels:
        return examples
    ids = [target_task.labels.index(name) for name in task.labels]
    order = sorted if task.task_type == "multi-label" else list

    def new_label(label: Any) -> Any:
        return tuple(order(ids[part] for part in label)) if isinstance(label, tuple) else ids[int(label)]

    return replace(examples, labels=tuple(map(new_label, examples.labels)))
