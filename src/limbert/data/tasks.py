"""What a model is asked to predict, and the nine GLUE tasks as a table: a new task is a row, not code."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from limbert.core.config import DataConfig, TaskType
from limbert.errors import ConfigError, DataError


@dataclass(frozen=True)
class Task:
    """What is predicted, and from what: the kind of label, the class names by id, the metrics to report.

    Raises:
        DataError: fewer names than the kind needs, repeated ones, or names for a kind that has none.
    """

    name: str | None  # canonical GLUE name such as "mrpc"; None for own data
    task_type: TaskType
    labels: tuple[str, ...]  # class names by id; () for regression and question answering
    metrics: tuple[str, ...]  # the first is the primary one
    has_pairs: bool | None = None  # whether a text comes with a second one; None: not known

    def __post_init__(self) -> None:
        fewest = _MIN_LABELS[self.task_type]
        if fewest == 0 and self.labels:
            raise DataError(
                f"label names {', '.join(self.labels)} given for a {_describe_task_type(self.task_type)}; it has none"
            )
        if len(self.labels) < fewest:
            few = "two" if fewest == 2 else "one"
            raise DataError(
                f"label names are {list(self.labels)}; a {_describe_task_type(self.task_type)} needs at least {few}"
            )
        if len(set(self.labels)) < len(self.labels):
            raise DataError(f"label names are {list(self.labels)}; each may occur once")

    @property
    def primary_metric(self) -> str:
        """The metric that checkpoints and sub-networks are chosen by."""
        return self.metrics[0]

    @property
    def num_outputs(self) -> int:
        """The number of model outputs: one a class, one score, or two (question answering): start and end."""
        return len(self.labels) or (2 if self.task_type == "question-answering" else 1)

    def check_inputs(self, *, has_pairs: bool) -> None:
        """Refuse single texts where the model was trained on pairs, and pairs where it was trained on single texts.

        Args:
            pairs: whether those that are to be answered are pairs.

        Raises:
            DataError: if so; it says what is missing or too much.
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
        known = (
            GLUE[values["name"]].task.has_pairs if values["name"] in GLUE else None
        )  # older checkpoints do not say it
        return cls(values["name"], values["kind"], labels, metrics, values.get("pairs", known))


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
_ENTITY_TAG = re.compile(r"O|[BIESLUM]-.+", re.DOTALL)  # BIO, BIOES, BILOU, BMES
_CERTAIN_ENTITY_TAG = re.compile(r"[BI]-.+", re.DOTALL)


def custom_task(task_type: TaskType, labels: tuple[str, ...], *, has_pairs: bool | None = None) -> Task:
    """A task on the user's own data, with the metrics that suit its kind.

    Tags of words that are not all ``O`` or ``B-TYPE``, ``I-TYPE`` and the like mark no entities: the metric is then
    the accuracy of the words.

    Raises:
        DataError: some tags are ``B-TYPE`` or ``I-TYPE`` and others of no such form, or see `Task`.
    """
    plain = False
    if task_type == "token-classification":
        fitting = entity_tags(labels)
        plain = not fitting
        if fitting and len(fitting) < len(labels):
            odd = next(label for label in labels if label not in fitting)
            raise DataError(f"tag {odd!r} stands among tags of entities; expected O or B-, I-, E-, S- and a type")
    return Task(None, task_type, labels, ("accuracy",) if plain else _DEFAULT_METRICS[task_type], has_pairs)


def entity_tags(tags: Iterable[str]) -> frozenset[str]:
    """Those of the tags that mark entities; none where they mean something else, such as parts of speech.

    ``B-TYPE`` and ``I-TYPE`` say that entities are marked, so that a tag of another form beside them is a mistake and
    not another kind of tag.
    """
    all_tags = frozenset(tags)
    fitting = frozenset(tag for tag in all_tags if _ENTITY_TAG.fullmatch(tag))
    certain = any(_CERTAIN_ENTITY_TAG.fullmatch(tag) for tag in fitting)
    return fitting if certain or fitting == all_tags else frozenset()


_TASK_TYPE_ALIASES: Mapping[str, TaskType] = {"ner": "token-classification", "squad": "question-answering"}


def requested_task_type(config: DataConfig) -> TaskType | None:
    """The kind of task that the settings name, by ``task_type``, a task such as ``ner``, or a separator of labels.

    Returns:
        None where they name none.

    Raises:
        ConfigError: two that contradict each other.
    """
    kind = _TASK_TYPE_ALIASES.get(_normalize_name(config.task)) if config.task is not None else None
    if kind is not None and config.task_type not in (None, kind):
        raise ConfigError(f"task type is {config.task_type}; it must be {kind} for task {config.task}")
    kind = kind or config.task_type
    if config.label_separator is None:
        return kind
    if config.task is not None or kind not in (None, "multi-label"):
        what = f"task {config.task}" if config.task is not None else f"task type {kind}"
        raise ConfigError(f"label separator is {config.label_separator!r}; it is for multi-label, not for {what}")
    return "multi-label"


@dataclass(frozen=True)
class Columns:
    """The columns that hold an example; all digits are positions in a file without header, counted from 0."""

    text: str | None
    pair: str | None
    label: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are set."""
        return tuple(name for name in (self.text, self.pair, self.label) if name is not None)

    @property
    def are_positions(self) -> bool:
        """True where every column that is set is a position, so that the file has no header."""
        return self.text is not None and all(name.isdecimal() for name in self.names)


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task: what it predicts, and how its files and its Hub data set are laid out."""

    task: Task
    column_layouts: tuple[Columns, ...]  # columns it is found in: tried in this order
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev"),)  # (name of the part, stem of its file)
    excluded_labels: tuple[str, ...] = ()  # labels that mean "the annotators did not agree": such rows are left out


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
    """The row of the GLUE table for a name in any common spelling, such as ``SST-2`` or ``sst2``.

    Raises:
        ConfigError: no GLUE task has this name.
    """
    plain = _normalize_name(name)
    if plain not in GLUE:
        raise ConfigError(f"task is {name!r}; it must be one of {', '.join((*GLUE, *_TASK_TYPE_ALIASES))}")
    return GLUE[plain]


def _normalize_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _describe_task_type(task_type: TaskType) -> str:
    return task_type if task_type in ("classification", "regression") else f"task of kind {task_type}"
