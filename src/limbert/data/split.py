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
    """Cut a validation split from the training examples, so that the development set chooses nothing.

    Stratified: after shuffling, the examples are sorted by label and every (1 / fraction)-th is taken, so that
    classes (and the range of scores) keep their fractions. One example of each class stays in training. A set of
    labels counts as one label. Examples in groups are cut by whole groups instead.

    Args:
        examples: labelled training examples.
        task: their task.
        fraction: of the examples for validation, between 0 and 1; at least one is taken.
        seed: chooses the examples; the same seed gives the same split.

    Returns:
        (training examples, validation examples), both in their old order.

    Raises:
        ConfigError: the fraction is out of range.
        DataError: too few examples to split.
    """
    if examples.groups is not None:
        return split_by_group(examples, fraction=fraction, seed=seed)
    if not 0 < fraction < 1:
        raise ConfigError(f"validation fraction is {fraction}; it must be between 0 and 1")
    if examples.labels is None:
        raise DataError("examples without labels cannot be split for validation; expected labelled examples")
    labels = _label_ids(examples.labels)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    strata = labels if task.task_type == "classification" else np.zeros(len(labels), dtype=np.int64)
    _, stays = np.unique(strata[shuffled], return_index=True)  # the first of each class
    candidates = np.delete(shuffled, stays)
    if not len(candidates):
        raise DataError(f"{len(examples)} training examples are too few for a validation split; expected two per class")
    ordered = candidates[np.argsort(labels[candidates], kind="stable")]
    step = min(max(fraction * len(labels), 1.0) / len(ordered), 1.0)
    counts = np.floor(np.arange(len(ordered) + 1) * step + 0.5)  # rises by one at every example that is taken
    taken = set(ordered[np.diff(counts) > 0].tolist())
    train = [index for index in range(len(labels)) if index not in taken]
    return examples.select(train), examples.select(sorted(taken))


def split_by_group(examples: Examples, *, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Hold out whole groups: articles with all their questions, or, if there are no groups, equal texts.

    Args:
        examples: labelled or not.
        fraction: of the examples to hold out, between 0 and 1. In random order, groups that still fit are taken; if
            none fits, the smallest.
        seed: chooses the groups; labels do not matter.

    Returns:
        (the other examples, the held-out examples), both in their old order.

    Raises:
        DataError: fewer than two groups.
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
    chosen = np.asarray([key in taken for key in keys])
    return examples.select(np.flatnonzero(~chosen).tolist()), examples.select(np.flatnonzero(chosen).tolist())


def reorder_labels(examples: Examples, task: Task, target_task: Task) -> Examples:
    """Examples of ``task`` with the class ids of ``target_task``, which has the same labels."""
    if examples.labels is None or task.labels == target_task.labels:
        return examples
    ids = [target_task.labels.index(name) for name in task.labels]

    def new_label(label: Any) -> Any:
        if isinstance(label, tuple):
            order = sorted if task.task_type == "multi-label" else list
            return tuple(order(ids[part] for part in label))
        return ids[int(label)]

    return replace(examples, labels=tuple(map(new_label, examples.labels)))


def _label_ids(labels: tuple[Any, ...]) -> np.ndarray:
    """A number per example: its label, or the index of its set of labels among all sets."""
    if not any(isinstance(label, tuple) for label in labels):
        return np.asarray(labels)
    sets = [tuple(sorted({*label})) for label in labels]
    numbers = {labels: number for number, labels in enumerate(sorted({*sets}))}
    return np.asarray([numbers[labels] for labels in sets])
