"""From labels as written in a file to class ids or scores; the task follows from the training labels."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.tasks import Task, custom_task, entity_tags, requested_task_type
from limbert.errors import DataError

_INTEGER = re.compile(r"[+-]?\d+")
_MAX_ABS_SCORE = 1e15  # its square is still a finite float32
_MIN_ROWS_TO_CHECK_CLASSES = 20  # with more rows, over one class per two rows means a wrong label column
_MAX_SHOWN_LABELS = 8  # label names listed in a message
_DEFAULT_SEPARATOR = ","  # between several labels in one cell


@dataclass(frozen=True)
class LabelParser:
    """Converts one label to the task's form.

    A class is written by its name, or as an equal number (``1`` for ``1.0``) if all names are numbers; if no name is a
    whole number, also by its index in ``id_names``. Several classes are a list, or one text with ``separator`` between
    them.
    """

    task: Task
    id_names: tuple[str, ...] = ()  # class names in the order of the ids in files; () if they have none
    separator: str | None = None

    @cached_property
    def _name_to_id(self) -> dict[str, int]:
        ids = {name: index for index, name in enumerate(self.task.labels)}
        if not any(_INTEGER.fullmatch(name) for name in ids):
            ids |= {str(number): ids[name] for number, name in enumerate(self.id_names) if name in ids}
        return ids

    @cached_property
    def _number_to_id(self) -> dict[float, int]:
        numbers = {
            number: index for index, name in enumerate(self.task.labels) if (number := parse_float(name)) is not None
        }
        return numbers if len(numbers) == len(self.task.labels) else {}

    def parse(self, value: Any) -> Any:
        """The label as in `Examples`.

        Raises:
            ValueError: the value is no label of the task; the message says what is expected.
        """
        if self.task.task_type == "question-answering":
            return value
        if self.task.task_type == "token-classification":
            return tuple(map(self._class_id, map(label_text, value)))
        if self.task.task_type == "multi-label":
            return tuple(sorted({self._class_id(part) for part in split_labels(value, self.separator)}))
        if isinstance(value, tuple):
            raise ValueError("a list of labels, expected one label")
        text = label_text(value)
        if self.task.task_type == "classification":
            return self._class_id(text)
        score = parse_float(text)
        if score is None:
            raise ValueError(f"label {text!r} is no number, expected a finite number")
        if abs(score) > _MAX_ABS_SCORE:
            raise ValueError(f"label {text!r} is too large, expected a number within {_MAX_ABS_SCORE:g}")
        return score

    def _class_id(self, text: str) -> int:
        index = self._name_to_id.get(text)
        if index is None and self._number_to_id:
            index = self._number_to_id.get(parse_float(text))  # type: ignore[arg-type]  # None is no key
        if index is None:
            what = "tag" if self.task.task_type == "token-classification" else "label"
            raise ValueError(f"{what} {text!r} is unknown, expected one of {_format_labels(self.task.labels)}")
        return index


def label_text(value: object) -> str:
    """A label of any type as text: as in the file, booleans in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def split_labels(value: object, separator: str | None) -> list[str]:
    """The labels in a cell that may hold several: a tuple of them, or a text with the separator between."""
    parts = value if isinstance(value, tuple) else label_text(value).split(separator or _DEFAULT_SEPARATOR)
    return [text for part in parts if (text := label_text(part))]


def infer_task(
    values: Sequence[Any], config: DataConfig, *, class_names: tuple[str, ...] | None = None, source: str
) -> Task:
    """The task that the training labels of own data mean; ``source`` is the file, for messages.

    The config decides if it names a task type. Else lists, or a column per label, are a multi-label task. Numbers of
    which some have a decimal point are a regression, even if fewer than half of the labels are something else (those
    rows are malformed), but two whole values such as 0.0 and 1.0 are two classes. Anything else is a classification.
    The ``class_names`` come from the data set, or are the sorted labels: numbers by value, text with digits by value.
    """
    task_type = requested_task_type(config)
    if task_type == "question-answering":
        return custom_task(task_type, config.label_names or ())
    if task_type == "token-classification":
        return custom_task(task_type, config.label_names or _infer_tag_names(values, source))
    lists = any(isinstance(value, tuple) for value in values)
    if lists and task_type not in (None, "multi-label"):
        raise DataError(f"{source}: labels are lists; a {task_type} has one label per row (several are multi-label)")
    if task_type == "multi-label" or lists:
        names = config.label_columns or config.label_names or class_names
        parts = {part for value in values for part in split_labels(value, config.label_separator)}
        return custom_task("multi-label", names or tuple(sorted(parts, key=natural_sort_key)))
    if config.label_names is not None:
        return custom_task(task_type or "classification", config.label_names)
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


def _infer_tag_names(tag_rows: Sequence[Sequence[str | int]], source: str) -> tuple[str, ...]:
    """All tags, ``O`` first; each entity type has a tag for every prefix in use, seen or not.

    Tags that mark no entity among those that do are left out, so that their rows are bad rows.
    """
    tags = {tag for row in tag_rows for tag in row}
    if any(isinstance(tag, int) for tag in tags):
        raise DataError(f"{source}: tags are numbers; give their names in the order of the ids with --label-names")
    names = {str(tag) for tag in tags}
    entities = entity_tags(names)
    if entities:
        prefixes = {name[0] for name in entities} - {"O"}
        if prefixes & {"B", "I"}:
            prefixes |= {"B"} if "M" in prefixes else {"B", "I"}
        names = {f"{prefix}-{name[2:]}" for name in entities - {"O"} for prefix in prefixes} | (entities & {"O"})
    return tuple(sorted(names, key=lambda name: (name != "O", natural_sort_key(name[2:]), name)))


def task_type_reason(values: Sequence[object], config: DataConfig, task: Task) -> str:
    """Why the labels of own data are this task, and the option that changes it."""
    texts = [label_text(value) for value in values]
    if task.name is not None or requested_task_type(config) is not None:
        return "as given"
    if task.task_type == "multi-label":
        return "labels are lists"
    if are_scores(texts):
        return "labels are numbers with a decimal point; --task-type classification makes them classes"
    if are_two_whole_values(texts):
        return "labels are two whole numbers; --task-type regression makes them scores"
    return "from the labels"


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
