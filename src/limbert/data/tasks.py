"""What a model predicts, from which columns, and the nine GLUE tasks as a table."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from limbert.core.config import DataConfig, TaskType
from limbert.errors import ConfigError, DataError


@dataclass(frozen=True)
class Task:
    """What is predicted from what: the task type, the class names by id, the metrics to report.

    Raises:
        DataError: fewer names than the task type needs, repeated names, or names for a task type without classes.
    """

    name: str | None  # canonical GLUE name such as "mrpc"; None for own data
    task_type: TaskType
    labels: tuple[str, ...]  # class names by id; () for regression and question answering
    metrics: tuple[str, ...]  # the first is the primary one
    has_pairs: bool | None = None  # whether a text comes with a second one; None: unknown

    def __post_init__(self) -> None:
        minimum = _MIN_LABELS[self.task_type]
        if minimum == 0 and self.labels:
            raise DataError(f"label names {', '.join(self.labels)} given for {self.task_type}; it has none")
        if len(self.labels) < minimum:
            raise DataError(f"label names are {list(self.labels)}; {self.task_type} needs at least {minimum}")
        if len(set(self.labels)) < len(self.labels):
            raise DataError(f"label names are {list(self.labels)}; each may occur once")

    @property
    def primary_metric(self) -> str:
        """The metric that checkpoints and sub-networks are chosen by."""
        return self.metrics[0]

    @property
    def num_outputs(self) -> int:
        """Model outputs: one per class, one score, or two (question answering): start and end."""
        return len(self.labels) or (2 if self.task_type == "question-answering" else 1)

    def with_primary_metric(self, metric: str) -> "Task":
        """The task with this metric first.

        Raises:
            ConfigError: the task type has no such metric.
        """
        allowed = dict.fromkeys((*self.metrics, *_MORE_METRICS.get(self.task_type, ())))
        if metric not in allowed:
            raise ConfigError(f"metric is {metric!r}; it must be one of {', '.join(allowed)} for {self.task_type}")
        return replace(self, metrics=tuple(dict.fromkeys((metric, *self.metrics))))

    def check_inputs(self, *, has_pairs: bool) -> None:
        """Refuse single texts if the model was trained on pairs, and pairs if it was trained on single texts.

        Raises:
            DataError: the message says what is missing or too much.
        """
        if self.has_pairs is True and not has_pairs:
            raise DataError("the model was trained on pairs of texts; the second text is missing")
        if self.has_pairs is False and has_pairs:
            raise DataError("the model was trained on single texts; a second text is given")

    def to_dict(self) -> dict[str, Any]:
        """The task in JSON values; ``from_dict`` reads it back."""
        known = {} if self.has_pairs is None else {"pairs": self.has_pairs}
        rest = {"name": self.name, "kind": self.task_type, "labels": list(self.labels), "metrics": list(self.metrics)}
        return rest | known

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Task":
        """The task that ``to_dict`` wrote."""
        labels, metrics = tuple(values["labels"]), tuple(values["metrics"])
        default = GLUE[values["name"]].task.has_pairs if values["name"] in GLUE else None  # in older checkpoints
        return cls(values["name"], values["kind"], labels, metrics, values.get("pairs", default))


_MIN_LABELS: Mapping[TaskType, int] = {
    "classification": 2,
    "regression": 0,
    "multi-label": 1,
    "token-classification": 2,
    "question-answering": 0,
}
_DEFAULT_METRICS: Mapping[TaskType, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "multi-label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "token-classification": ("entity_f1", "entity_precision", "entity_recall"),
    "question-answering": ("f1", "exact_match"),
}
_MORE_METRICS: Mapping[TaskType, tuple[str, ...]] = {"classification": ("macro_f1", "matthews")}  # on request
_ENTITY_TAG = re.compile(r"O|[BIESLUM]-.+", re.DOTALL)  # BIO, BIOES, BILOU, BMES
_CERTAIN_ENTITY_TAG = re.compile(r"[BI]-.+", re.DOTALL)


def custom_task(task_type: TaskType, labels: tuple[str, ...], *, has_pairs: bool | None = None) -> Task:
    """A task on own data, with the default metrics of its type.

    If word tags are not all ``O``, ``B-TYPE``, ``I-TYPE`` and the like, they mark no entities: the metric is then the
    accuracy of words.

    Raises:
        DataError: some tags are ``B-TYPE`` or ``I-TYPE`` and others of no such form, or see `Task`.
    """
    plain = False
    if task_type == "token-classification":
        entities = entity_tags(labels)
        plain = not entities
        if entities and len(entities) < len(labels):
            odd = next(label for label in labels if label not in entities)
            raise DataError(f"tag {odd!r} is among entity tags; expected O or B-, I-, E-, S- and a type")
    return Task(None, task_type, labels, ("accuracy",) if plain else _DEFAULT_METRICS[task_type], has_pairs)


def entity_tags(tags: Iterable[str]) -> frozenset[str]:
    """Those of the tags that mark entities; none if tags mean something else, such as parts of speech.

    ``B-TYPE`` and ``I-TYPE`` say that entities are marked, so a tag of another form beside them is a mistake.
    """
    all_tags = frozenset(tags)
    matching = frozenset(tag for tag in all_tags if _ENTITY_TAG.fullmatch(tag))
    certain = any(_CERTAIN_ENTITY_TAG.fullmatch(tag) for tag in matching)
    return matching if certain or matching == all_tags else frozenset()


_TASK_TYPE_ALIASES: Mapping[str, TaskType] = {"ner": "token-classification", "squad": "question-answering"}


def requested_task_type(config: DataConfig) -> TaskType | None:
    """The task type that the settings name: ``task_type``, a task such as ``ner``, or a multi-label setting.

    Returns:
        None if they name none.

    Raises:
        ConfigError: two that contradict each other.
    """
    task_type = _TASK_TYPE_ALIASES.get(_normalize_name(config.task)) if config.task is not None else None
    if task_type is not None and config.task_type not in (None, task_type):
        raise ConfigError(f"task type is {config.task_type}; it must be {task_type} for task {config.task}")
    task_type = task_type or config.task_type
    for name in ("label_separator", "label_columns"):
        value = getattr(config, name)
        if value is None:
            continue
        if config.task is not None or task_type not in (None, "multi-label"):
            what = f"task {config.task}" if config.task is not None else f"task type {task_type}"
            raise ConfigError(f"{name.replace('_', ' ')} is {value!r}; it is for multi-label, not for {what}")
        task_type = "multi-label"
    return task_type


@dataclass(frozen=True)
class Columns:
    """The columns that hold an example; digits are indices in a file without header, counted from 0."""

    text: str | None
    pair: str | None
    label: str | None
    label_columns: tuple[str, ...] = ()  # instead of ``label``: a column of 0 and 1 for each label
    guessed: tuple[str, ...] = field(default=(), compare=False)  # columns that no setting named
    guessed_from: str | None = field(default=None, compare=False)  # the table in which they were found

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are set."""
        return tuple(name for name in (self.text, self.pair, self.label, *self.label_columns) if name is not None)

    @property
    def has_labels(self) -> bool:
        """Whether labels are read."""
        return self.label is not None or bool(self.label_columns)

    @property
    def are_positions(self) -> bool:
        """Whether every column that is set is an index, so that the file has no header."""
        return self.text is not None and all(name.isdecimal() for name in self.names)


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task: what it predicts, and the layout of its files and of its Hub data set."""

    task: Task
    column_layouts: tuple[Columns, ...]  # tried in this order
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev"),)  # (name of the part, stem of its file)
    excluded_labels: tuple[str, ...] = ()  # "the annotators did not agree": such rows are left out


GLUE_HUB_NAME = "nyu-mll/glue"  # the Hub data set; its configurations are named as the tasks here

_ENTAILMENT_LABELS = ("entailment", "not_entailment")
_SENTENCE_COLUMNS = Columns("sentence", None, "label")
_SENTENCE_PAIR_COLUMNS = Columns("sentence1", "sentence2", "label")
_QUESTION_PAIR_COLUMNS = Columns("question1", "question2", "label")


def _classification_task(name: str, labels: tuple[str, ...], *metrics: str) -> Task:
    return Task(name, "classification", labels, metrics or ("accuracy",))


_GLUE_TASKS = (
    GlueTask(
        _classification_task("cola", ("unacceptable", "acceptable"), "matthews"),
        (_SENTENCE_COLUMNS, Columns("3", None, "1")),
    ),
    GlueTask(_classification_task("sst2", ("negative", "positive")), (_SENTENCE_COLUMNS,)),
    GlueTask(
        _classification_task("mrpc", ("not_equivalent", "equivalent"), "accuracy", "f1"),
        (Columns("#1 String", "#2 String", "Quality"), _SENTENCE_PAIR_COLUMNS),
    ),
    GlueTask(
        Task("stsb", "regression", (), ("pearson", "spearman")),
        (Columns("sentence1", "sentence2", "score"), _SENTENCE_PAIR_COLUMNS),
    ),
    GlueTask(
        _classification_task("qqp", ("not_duplicate", "duplicate"), "accuracy", "f1"),
        (Columns("question1", "question2", "is_duplicate"), _QUESTION_PAIR_COLUMNS),
    ),
    GlueTask(
        _classification_task("mnli", ("entailment", "neutral", "contradiction")),
        (Columns("sentence1", "sentence2", "gold_label"), Columns("premise", "hypothesis", "label")),
        dev_files=(("matched", "dev_matched"), ("mismatched", "dev_mismatched")),
        excluded_labels=("-",),
    ),
    GlueTask(_classification_task("qnli", _ENTAILMENT_LABELS), (Columns("question", "sentence", "label"),)),
    GlueTask(_classification_task("rte", _ENTAILMENT_LABELS), (_SENTENCE_PAIR_COLUMNS,)),
    GlueTask(_classification_task("wnli", ("not_entailment", "entailment")), (_SENTENCE_PAIR_COLUMNS,)),
)
GLUE: Mapping[str, GlueTask] = {
    str(entry.task.name): replace(entry, task=replace(entry.task, has_pairs=entry.column_layouts[0].pair is not None))
    for entry in _GLUE_TASKS
}


def glue_task(name: str) -> GlueTask:
    """The GLUE task of a name in any common spelling, such as ``SST-2`` or ``sst2``.

    Raises:
        ConfigError: no GLUE task has this name.
    """
    plain = _normalize_name(name)
    if plain not in GLUE:
        raise ConfigError(f"task is {name!r}; it must be one of {', '.join((*GLUE, *_TASK_TYPE_ALIASES))}")
    return GLUE[plain]


def _normalize_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
