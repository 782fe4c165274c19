"""From the labels as they stand in a file to class ids or scores: the task follows from the training labels."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from limbert.core.config import DataConfig
from limbert.data.tasks import Task, custom_task, requested_task_type
from limbert.errors import ConfigError, DataError

_INTEGER = re.compile(r"[+-]?\d+")
_MAX_ABS_SCORE = 1e15  # of a score: sums of its square are still numbers of 32 bits
_MIN_ROWS_TO_CHECK_CLASSES = 20  # from here on, more than one class for two rows is taken for a wrong label column
_MAX_SHOWN_LABELS = 8  # label names listed in a message
DEFAULT_LABEL_SEPARATOR = ","  # between several labels in one cell


@dataclass(frozen=True)
class LabelParser:
    """Reads one label as the task understands it.

    A class is written by its name. Where ``accept_ids`` is set and no name is itself a whole number, by its id too.
    Several classes are a list, or one text with ``separator`` between them.
    """

    task: Task
    accept_ids: bool
    separator: str = DEFAULT_LABEL_SEPARATOR

    @cached_property
    def _name_to_id(self) -> dict[str, int]:
        ids = {name: index for index, name in enumerate(self.task.labels)}
        if self.accept_ids and not any(_INTEGER.fullmatch(name) for name in ids):
            ids |= {str(index): index for index in range(len(self.task.labels))}
        return ids

    def parse(self, value: object) -> int | float | tuple[int, ...]:
        """The class id or the score; of a multi-label task the ids of all its classes, rising.

        Raises:
            ValueError: the value is none; the message says what is expected instead.
        """
        if self.task.task_type == "multi-label":
            return tuple(sorted({self._class_id(part) for part in split_labels(value, self.separator)}))
        if isinstance(value, tuple):
            raise ValueError("a list of labels, expected one label")
        text = label_text(value)
        if self.task.task_type == "regression":
            number = _parse_float(text)
            if number is None:
                raise ValueError(f"label {text!r} is no number, expected a finite number")
            if abs(number) > _MAX_ABS_SCORE:
                raise ValueError(f"label {text!r} is too large, expected a number within {_MAX_ABS_SCORE:g}")
            return number
        return self._class_id(text)

    def _class_id(self, text: str) -> int:
        if text not in self._name_to_id:
            raise ValueError(f"label {text!r} is unknown, expected one of {_format_labels(self.task.labels)}")
        return self._name_to_id[text]


def label_text(value: object) -> str:
    """A label of any type as text: as in the file, true and false in small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def split_labels(value: object, separator: str) -> list[str]:
    """The labels in a cell that may hold several: a list of them, or a text with the separator between."""
    parts = [label_text(part) for part in value] if isinstance(value, tuple) else label_text(value).split(separator)
    return [part.strip() for part in parts if part.strip()]


def infer_task(
    values: Sequence[object], config: DataConfig, *, class_names: tuple[str, ...] | None, source: str
) -> Task:
    """The task on own data that the training labels mean.

    What the config says is taken. Else lists are a multi-label task; all whole numbers are a classification; numbers,
    some with a point, are a regression (also if fewer than half of the labels are something else: those rows are then
    malformed); anything else is a classification. The class names are those that the data set itself brings, or the
    labels sorted: numbers by value, text by its letters, digits within it by value.

    Args:
        values: the training labels as they stand in the file.
        config: ``task_type`` and ``label_names``.
        class_names: the names that the data set brings (Hub, Parquet written by ``datasets``), or None.
        source: the training file, for messages.

    Raises:
        ConfigError: label names for a regression.
        DataError: a single class or value, about a class a row, or lists for a task with one label a row.
    """
    kind, lists = requested_task_type(config), any(isinstance(value, tuple) for value in values)
    if lists and kind not in (None, "multi-label"):
        raise DataError(f"{source}: labels are lists; a {kind} has one label a row (several are multi-label)")
    if kind == "multi-label" or lists:
        parts = {
            part for value in values for part in split_labels(value, config.label_separator or DEFAULT_LABEL_SEPARATOR)
        }
        return custom_task(
            "multi-label", config.label_names or class_names or tuple(sorted(parts, key=natural_sort_key))
        )
    if config.label_names is not None:
        if config.task_type == "regression":
            raise ConfigError(f"label names are {list(config.label_names)} for a regression; it has none")
        return custom_task("classification", config.label_names)
    texts = [label_text(value) for value in values]
    distinct = set(texts)
    if config.task_type == "regression" or (config.task_type is None and class_names is None and _are_scores(texts)):
        if len({_parse_float(text) for text in texts}) < 2:
            raise DataError(f"{source}: every label is {texts[0]!r}; a regression needs at least two values")
        return custom_task("regression", ())
    if len(distinct) < 2:
        raise DataError(f"{source}: every label is {texts[0]!r}; a classification needs at least two classes")
    if len(distinct) == len(texts) or (len(texts) > _MIN_ROWS_TO_CHECK_CLASSES and 2 * len(distinct) > len(texts)):
        raise DataError(
            f"{source}: {len(distinct)} different labels in {len(texts)} rows; a classification needs "
            "several rows a class (is it the right label column, or a regression?)"
        )
    return custom_task("classification", class_names or tuple(sorted(distinct, key=natural_sort_key)))


def _are_scores(texts: Sequence[str]) -> bool:
    numbers = sum(_parse_float(text) is not None for text in texts)
    integers = sum(_INTEGER.fullmatch(text) is not None for text in texts)
    return numbers > integers and 2 * numbers > len(texts)


def _parse_float(text: str) -> float | None:
    """The finite number that the text writes, or None."""
    try:
        number = float(text) if "_" not in text else math.nan  # Python's own way to write 1000
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def natural_sort_key(text: str) -> tuple[int, float, list[str | int]]:
    """The natural order of class names: numbers by value, before text by its letters, digits within it by value."""
    number = _parse_float(text)
    if number is not None:
        return 0, number, [text]
    return 1, 0.0, [int(part[:4000]) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", text))]


def _format_labels(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_MAX_SHOWN_LABELS])
    return shown if len(labels) <= _MAX_SHOWN_LABELS else f"{shown}, ... ({len(labels)} in all)"
