"""What a model predicts, from which columns, and the nine GLUE tasks as a table."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from limbert.core.config import DataConfig, TaskType
from limbert.errors import ConfigError, DataError


@dataclass(frozen=True)
class Task:
    """What is predicted from what; DataError for class names that do not fit the task type."""

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
        """The task with this metric first; ConfigError if the task type has no such metric."""
        allowed = dict.fromkeys((*self.metrics, *_MORE_METRICS.get(self.task_type, ())))
        if metric not in allowed:
            raise ConfigError(f"metric is {metric!r}; it must be one of {', '.join(allowed)} for {self.task_type}")
        return replace(self, metrics=tuple(dict.fromkeys((metric, *self.metrics))))

    def check_inputs(self, *, has_pairs: bool) -> None:
        """DataError for single texts if the model was trained on pairs, and for pairs if on single texts."""
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


_DEFAULT_METRICS: Mapping[TaskType, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "multi-label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "token-classification": ("entity_f1", "entity_precision", "entity_recall"),
    "question-answering": ("f1", "exact_match"),
}
_MIN_LABELS: Mapping[TaskType, int] = dict(zip(_DEFAULT_METRICS, (2, 0, 1, 2, 0), strict=True))
_MORE_METRICS: Mapping[TaskType, tuple[str, ...]] = {"classification": ("macro_f1", "matthews")}  # on request
_ENTITY_TAG = re.compile(r"O|[BIESLUM]-.+", re.DOTALL)  # BIO, BIOES, BILOU, BMES
_CERTAIN_ENTITY_TAG = re.compile(r"[BI]-.+", re.DOTALL)


def custom_task(task_type: TaskType, labels: tuple[str, ...], *, has_pairs: bool | None = None) -> Task:
    """A task on own data, with the default metrics of its type; accuracy of words if their tags mark no entities."""
    metrics = _DEFAULT_METRICS[task_type]
    if task_type == "token-classification":
        entities = entity_tags(labels)
        if odd := [label for label in labels if entities and label not in entities]:
            raise DataError(f"tag {odd[0]!r} is among entity tags; expected O or B-, I-, E-, S- and a type")
        metrics = metrics if entities else ("accuracy",)
    return Task(None, task_type, labels, metrics, has_pairs)


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
    """The task type that ``task_type``, a task such as ``ner``, or a multi-label setting names; None if none does."""
    task_type = _TASK_TYPE_ALIASES.get(_normalize_name(config.task)) if config.task is not None else None
    if task_type is not None and config.task_type not in (None, task_type):
        raise ConfigError(f"task type is {config.task_type}; it must be {task_type} for task {config.task}")
    task_type = task_type or config.task_type
    what = f"task {config.task}" if config.task is not None else f"task type {task_type}"
    for name in ("label_separator", "label_columns"):
        if (value := getattr(config, name)) is not None:
            if config.task is not None or task_type not in (None, "multi-label"):
                raise ConfigError(f"{name.replace('_', ' ')} is {value!r}; it is for multi-label, not for {what}")
            task_type = "multi-label"
    return task_type


@dataclass(frozen=True)
class Columns:
    """The columns that hold an example; digits are indices in a file without header, counted from 0."""

    text: str | None
    pair: str | None = None
    label: str | None = None
    label_columns: tuple[str, ...] = ()  # instead of ``label``: a column of 0 and 1 for each label
    guessed: tuple[str, ...] = field(default=(), compare=False)  # columns that no setting named
    guessed_from: str | None = field(default=None, compare=False)  # the table in which they were found

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are set."""
        return tuple(name for name in (self.text, self.pair, self.label, *self.label_columns) if name is not None)

    @property
    def are_positions(self) -> bool:
        """Whether every column that is set is an index, so that the file has no header."""
        return self.text is not None and all(name.isdecimal() for name in self.names)


# Of task types whose columns have usual names; without labels the last two of token classification are plain texts.
TASK_COLUMNS: Mapping[TaskType, tuple[Columns, ...]] = {
    "token-classification": tuple(
        Columns(words, None, tags)
        for words in ("tokens", "words", "text", "sentence")
        for tags in ("tags", "ner_tags", "labels", "ner")
    ),
    "question-answering": (Columns("question", "context", "answers"),),
}


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task: what it predicts, and the layout of its files and of its Hub data set."""

    task: Task
    column_layouts: tuple[Columns, ...]  # tried in this order
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev"),)  # (name of the part, stem of its file)
    excluded_labels: tuple[str, ...] = ()  # "the annotators did not agree": such rows are left out


GLUE_HUB_NAME = "nyu-mll/glue"  # the Hub data set; its configurations are named as the tasks here
_MNLI_PARTS = (("matched", "dev_matched"), ("mismatched", "dev_mismatched"))
_ENTAILMENT, _MNLI_LABELS = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")
_ACCURACY, _ACCURACY_F1 = ("accuracy",), ("accuracy", "f1")
_SENTENCE, _PAIR = Columns("sentence", None, "label"), Columns("sentence1", "sentence2", "label")
_QUESTIONS = tuple(Columns("question1", "question2", label) for label in ("is_duplicate", "label"))
_MRPC = Columns("#1 String", "#2 String", "Quality")
_MNLI = (Columns("sentence1", "sentence2", "gold_label"), Columns("premise", "hypothesis", "label"))


def _glue(
    name: str, labels: tuple[str, ...], metrics: tuple[str, ...], *layouts: Columns, **options: Any
) -> tuple[str, GlueTask]:
    task_type: TaskType = "classification" if labels else "regression"
    return name, GlueTask(Task(name, task_type, labels, metrics, layouts[0].pair is not None), layouts, **options)


GLUE: Mapping[str, GlueTask] = dict(
    (
        _glue("cola", ("unacceptable", "acceptable"), ("matthews",), _SENTENCE, Columns("3", None, "1")),
        _glue("sst2", ("negative", "positive"), _ACCURACY, _SENTENCE),
        _glue("mrpc", ("not_equivalent", "equivalent"), _ACCURACY_F1, _MRPC, _PAIR),
        _glue("stsb", (), ("pearson", "spearman"), Columns("sentence1", "sentence2", "score"), _PAIR),
        _glue("qqp", ("not_duplicate", "duplicate"), _ACCURACY_F1, *_QUESTIONS),
        _glue("mnli", _MNLI_LABELS, _ACCURACY, *_MNLI, dev_files=_MNLI_PARTS, excluded_labels=("-",)),
        _glue("qnli", _ENTAILMENT, _ACCURACY, Columns("question", "sentence", "label")),
        _glue("rte", _ENTAILMENT, _ACCURACY, _PAIR),
        _glue("wnli", _ENTAILMENT[::-1], _ACCURACY, _PAIR),
    )
)


def glue_task(name: str) -> GlueTask:
    """The GLUE task of a name in any common spelling, such as ``SST-2`` or ``sst2``; ConfigError if there is none."""
    plain = _normalize_name(name)
    if plain not in GLUE:
        raise ConfigError(f"task is {name!r}; it must be one of {', '.join((*GLUE, *_TASK_TYPE_ALIASES))}")
    return GLUE[plain]


def find_glue_task(name: str | None, task_type: TaskType | None) -> GlueTask | None:
    """The GLUE task of a name; None without a name, and for the task types with columns of their own."""
    return None if name is None or task_type in TASK_COLUMNS else glue_task(name)


def column_layouts(glue: GlueTask | None, task_type: TaskType | None) -> tuple[Columns, ...]:
    """The usual columns of a task, () if they are guessed."""
    return glue.column_layouts if glue else TASK_COLUMNS.get(task_type or "classification", ())


def _normalize_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
