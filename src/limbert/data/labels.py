"""From labels as written in a file to class ids or scores; the task follows from the training labels."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from limbert.core.config import DataConfig
from limbert.data.tasks import Task, custom_task, requested_task_type
from limbert.errors import ConfigError, DataError

_INTEGER = re.compile(r"[+-]?\d+")
_MAX_ABS_SCORE = 1e15  # its square is still a finite float32
_MIN_ROWS_TO_CHECK_CLASSES = 20  # with more rows, over one class per two rows means a wrong label column
_MAX_SHOWN_LABELS = 8  # label names listed in a message
_DEFAULT_SEPARATOR = ","  # between several labels in one cell


@dataclass(frozen=True)
class LabelParser:
    """Converts one label to the task's form.

    A class is written by its name, or as an equal number (``1`` for ``1.0``) if all names are numbers. With
    ``accept_ids``, if no name is a whole number, by its id too. Several classes are a list, or one text with
    ``separator`` between them.
    """

    task: Task
    accept_ids: bool
    separator: str | None = None

    @cached_property
    def _name_to_id(self) -> dict[str, int]:
        ids = {name: index for index, name in enumerate(self.task.labels)}
        if self.accept_ids and not any(_INTEGER.fullmatch(name) for name in ids):
            ids |= {str(index): index for index in range(len(self.task.labels)) if str(index) not in ids}
        return ids

    @cached_property
    def _number_to_id(self) -> dict[float, int]:
        numbers = {parse_float(name): index for index, name in enumerate(self.task.labels)}
        if None in numbers or len(numbers) < len(self.task.labels):
            return {}
        return {number: index for number, index in numbers.items() if number is not None}

    def parse(self, value: object) -> int | float | tuple[int, ...]:
        """The class id or the score; of a multi-label task the ids of all its classes, in rising order.

        Raises:
            ValueError: the value is no label of the task; the message says what is expected.
        """
        if self.task.task_type == "multi-label":
            return tuple(sorted({self._class_id(part) for part in split_labels(value, self.separator)}))
        if isinstance(value, tuple):
            raise ValueError("a list of labels, expected one label")
        text = label_text(value)
        if self.task.task_type == "regression":
            number = parse_float(text)
            if number is None:
                raise ValueError(f"label {text!r} is no number, expected a finite number")
            if abs(number) > _MAX_ABS_SCORE:
                raise ValueError(f"label {text!r} is too large, expected a number within {_MAX_ABS_SCORE:g}")
            return number
        return self._class_id(text)

    def _class_id(self, text: str) -> int:
        index = self._name_to_id.get(text)
        if index is None:
            number = parse_float(text)
            index = None if number is None else self._number_to_id.get(number)
        if index is None:
            raise ValueError(f"label {text!r} is unknown, expected one of {_format_labels(self.task.labels)}")
        return index


def label_text(value: object) -> str:
    """A label of any type as text: as in the file, booleans in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def split_labels(value: object, separator: str | None) -> list[str]:
    """The labels in a cell that may hold several: a tuple of them, or a text with the separator between."""
    parts = value if isinstance(value, tuple) else label_text(value).split(separator or _DEFAULT_SEPARATOR)
    return [text for part in parts if (text := label_text(part))]


def infer_task(
    values: Sequence[object], config: DataConfig, *, class_names: tuple[str, ...] | None, source: str
) -> Task:
    """The task that the training labels of own data mean; ``source`` is the file, for messages.

    The config decides if it names a task type. Else lists, or a column per label, are a multi-label task. Numbers of
    which some have a decimal point are a regression, even if fewer than half of the labels are something else (those
    rows are malformed), but two whole values such as 0.0 and 1.0 are two classes. Anything else is a classification.
    The ``class_names`` come from the data set, or are the sorted labels: numbers by value, text with digits by value.
    """
    task_type, lists = requested_task_type(config), any(isinstance(value, tuple) for value in values)
    if lists and task_type not in (None, "multi-label"):
        raise DataError(f"{source}: labels are lists; a {task_type} has one label per row (several are multi-label)")
    if task_type == "multi-label" or lists:
        names = config.label_columns or config.label_names or class_names
        if names is None:
            parts = {part for value in values for part in split_labels(value, config.label_separator)}
            names = tuple(sorted(parts, key=natural_sort_key))
        return custom_task("multi-label", names)
    if config.label_names is not None:
        if task_type == "regression":
            raise ConfigError(f"label names are {list(config.label_names)} for a regression; it has none")
        return custom_task("classification", config.label_names)
    texts = [label_text(value) for value in values]
    if task_type == "regression" or (task_type is None and class_names is None and are_scores(texts)):
        if len({parse_float(text) for text in texts}) < 2:
            raise DataError(f"{source}: every label is {texts[0]!r}; a regression needs at least two values")
        return custom_task("regression", ())
    distinct = {*texts}
    if are_two_whole_values(texts):  # "1" and "1.0" are one class
        distinct = {*{parse_float(text): text for text in sorted(distinct)}.values()}
    if len(distinct) < 2:
        raise DataError(f"{source}: every label is {texts[0]!r}; a classification needs at least two classes")
    if len(distinct) == len(texts) or (len(texts) > _MIN_ROWS_TO_CHECK_CLASSES and 2 * len(distinct) > len(texts)):
        raise DataError(
            f"{source}: {len(distinct)} different labels in {len(texts)} rows; a classification needs "
            "several rows per class (is it the right label column, or a regression?)"
        )
    return custom_task("classification", class_names or tuple(sorted(distinct, key=natural_sort_key)))


def are_scores(texts: Sequence[str]) -> bool:
    """Whether labels are numbers with a decimal point, and not just two whole values."""
    numbers = sum(parse_float(text) is not None for text in texts)
    integers = sum(_INTEGER.fullmatch(text) is not None for text in texts)
    return numbers > integers and 2 * numbers > len(texts) and not are_two_whole_values(texts)


def are_two_whole_values(texts: Sequence[str]) -> bool:
    """Whether labels are two whole numbers of which some are written with a decimal point, such as 0.0 and 1.0."""
    values = {parse_float(text) for text in texts}
    whole = all(value is not None and value.is_integer() for value in values)
    return len(values) == 2 and whole and not all(_INTEGER.fullmatch(text) for text in texts)


def parse_float(text: str) -> float | None:
    """The finite number that the text writes, or None."""
    try:
        number = float(text) if "_" not in text else math.nan  # Python alone reads 1_000
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def natural_sort_key(text: str) -> tuple[int, float, list[str | int]]:
    """Order of class names: numbers by value, then text by its letters, with digits inside by value."""
    number = parse_float(text)
    if number is not None:
        return 0, number, [text]
    return 1, 0.0, [int(part[:4000]) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", text))]


def _format_labels(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_MAX_SHOWN_LABELS])
    return shown if len(labels) <= _MAX_SHOWN_LABELS else f"{shown}, ... ({len(labels)} in all)"
