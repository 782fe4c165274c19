"""From labels as written in a file to class ids or scores; the task follows from the training labels."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.tasks import Task, custom_task, entity_tags, requested_task_type
from limbert.errors import DataError

_INTEGER = re.compile(r"[+-]?\d+")
_MAX_ABS_SCORE = 1e15  # its square is still a finite float32
_MIN_ROWS_TO_CHECK_CLASSES = 20  # with more rows, over one class per two rows means a wrong label column
_MAX_SHOWN_LABELS = 8  # label names listed in a message
_DEFAULT_SEPARATOR = ","  # between several labels in one cell


def label_parser(task: Task, id_names: Sequence[str] = (), separator: str | None = None) -> Callable[[Any], Any]:
    """A function that converts one label to the task's form, as in `Examples`, or raises ValueError.

    A class is written by its name, or as an equal number (``1`` for ``1.0``) if all names are numbers; if no name is a
    whole number, also by its index in ``id_names``, the names in the order of the ids in files (empty: they have none).
    Several classes are a list, or one text with ``separator`` between them.
    """
    ids = {name: index for index, name in enumerate(task.labels)}
    if not any(_INTEGER.fullmatch(name) for name in ids):
        ids |= {str(number): ids[name] for number, name in enumerate(id_names) if name in ids}
    numbers = {parse_float(name): index for index, name in enumerate(task.labels)}
    if len(numbers) < len(task.labels) or None in numbers:
        numbers = {}

    def class_id(text: str) -> int:
        index = ids.get(text)
        if index is None:
            index = numbers.get(parse_float(text)) if numbers else None
        if index is None:
            shown = ", ".join(task.labels[:_MAX_SHOWN_LABELS])
            more = f", ... ({len(task.labels)} in all)" if len(task.labels) > _MAX_SHOWN_LABELS else ""
            what = "tag" if task.task_type == "token-classification" else "label"
            raise ValueError(f"{what} {text!r} is unknown, expected one of {shown}{more}")
        return index

    def parse(value: Any) -> Any:
        if task.task_type == "question-answering":
            return value
        if task.task_type == "token-classification":
            return tuple(map(class_id, map(label_text, value)))
        if task.task_type == "multi-label":
            return tuple(sorted({class_id(part) for part in split_labels(value, separator)}))
        if isinstance(value, tuple):
            raise ValueError("a list of labels, expected one label")
        text = label_text(value)
        if task.task_type == "classification":
            return class_id(text)
        score = parse_float(text)
        if score is None:
            raise ValueError(f"label {text!r} is no number, expected a finite number")
        if abs(score) > _MAX_ABS_SCORE:
            raise ValueError(f"label {text!r} is too large, expected a number within {_MAX_ABS_SCORE:g}")
        return score

    return parse


def label_text(value: object) -> str:
    """A label of any type as text: as in the file, booleans in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def split_labels(value: object, separator: str | None) -> list[str]:
    """The labels in a cell that may hold several: a tuple of them, or a text with the separator between."""
    parts = value if isinstance(value, tuple) else label_text(value).split(separator or _DEFAULT_SEPARATOR)
    return [text for part in parts if (text := label_text(part))]


def infer_task(
    labels: Sequence[Any], config: DataConfig, *, class_names: tuple[str, ...] | None = None, source: str
) -> tuple[Task, str]:
    """The task that the training labels of own data mean, and why, with the option that changes it.

    The config decides if it names a task type. Else lists, or a column per label, are a multi-label task. Numbers of
    which some have a decimal point are a regression, even if fewer than half of the labels are something else (those
    rows are malformed), but two whole values such as 0.0 and 1.0 are two classes. Anything else is a classification.
    The ``class_names`` come from the data set, or are the sorted labels: numbers by value, text with digits by value.
    ``source`` is the file, for messages.
    """
    task_type = requested_task_type(config)
    reason = "as given" if task_type else "from the labels"
    if task_type == "question-answering":
        return custom_task(task_type, config.label_names or ()), reason
    if task_type == "token-classification":
        return custom_task(task_type, config.label_names or _infer_tag_names(labels, source)), reason
    lists = any(isinstance(label, tuple) for label in labels)
    if lists and task_type not in (None, "multi-label"):
        raise DataError(f"{source}: labels are lists; a {task_type} has one label per row (several are multi-label)")
    if task_type == "multi-label" or lists:
        names = config.label_columns or config.label_names or class_names
        parts = {part for label in labels for part in split_labels(label, config.label_separator)}
        task = custom_task("multi-label", names or tuple(sorted(parts, key=natural_sort_key)))
        return task, reason if task_type else "labels are lists"
    counts = Counter(map(label_text, labels))
    values = {text: parse_float(text) for text in counts}  # of different texts
    distinct = {*values.values()}
    num_numbers = sum(counts[text] for text, value in values.items() if value is not None)
    num_integers = sum(count for text, count in counts.items() if _INTEGER.fullmatch(text))
    whole = all(value is not None and value.is_integer() for value in distinct)
    two_values = whole and len(distinct) == 2 and num_integers < len(labels)
    scores = num_integers < num_numbers and 2 * num_numbers > len(labels) and not two_values
    if task_type is None and scores:
        reason = "labels are numbers with a decimal point; --task-type classification makes them classes"
    elif task_type is None and two_values:
        reason = "labels are two whole numbers; --task-type regression makes them scores"
    if config.label_names is not None:
        return custom_task(task_type or "classification", config.label_names), reason
    regression = task_type == "regression" or (task_type is None and class_names is None and scores)
    if regression and len(distinct) > 1:
        return custom_task("regression", ()), reason
    classes = set(counts)
    if two_values:  # "1" and "1.0" are one class
        classes = {*{value: text for text, value in sorted(values.items())}.values()}
    if len(classes) < 2 or regression:
        needed = "regression needs at least two values" if regression else "classification needs at least two classes"
        raise DataError(f"{source}: every label is {label_text(labels[0])!r}; a {needed}")
    num_classes, num_labels = len(classes), len(labels)
    if num_classes == num_labels or (num_labels > _MIN_ROWS_TO_CHECK_CLASSES and 2 * num_classes > num_labels):
        raise DataError(
            f"{source}: {num_classes} different labels in {num_labels} rows; a classification needs "
            "several rows per class (is it the right label column, or a regression?)"
        )
    return custom_task("classification", class_names or tuple(sorted(classes, key=natural_sort_key))), reason


def _infer_tag_names(tag_rows: Sequence[Sequence[str | int]], source: str) -> tuple[str, ...]:
    """All tags, ``O`` first; each entity type has a tag for every prefix in use, seen or not.

    Tags that mark no entity among those that do are left out, so that their rows are bad rows.
    """
    tags = {tag for row in tag_rows for tag in row}
    if any(isinstance(tag, int) for tag in tags):
        raise DataError(f"{source}: tags are numbers; give their names in the order of the ids with --label-names")
    names = {str(tag) for tag in tags}
    if entities := entity_tags(names):
        prefixes = {name[0] for name in entities} - {"O"}
        if prefixes & {"B", "I"}:
            prefixes |= {"B"} if "M" in prefixes else {"B", "I"}
        names = {f"{prefix}-{name[2:]}" for name in entities - {"O"} for prefix in prefixes} | (entities & {"O"})
    return tuple(sorted(names, key=lambda name: (name != "O", natural_sort_key(name[2:]), name)))


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
