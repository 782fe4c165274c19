"""What a model is asked to predict, and the nine GLUE tasks as a table: a new task is a row, not code."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from limbert.core.config import DataConfig, TaskKind
from limbert.errors import ConfigError, DataError


@dataclass(frozen=True)
class Task:
    """What is predicted, and from what: the kind of label, the class names by id, the metrics to report.

    Raises:
        DataError: fewer names than the kind needs, repeated ones, or names for a kind that has none.
    """

    name: str | None  # canonical GLUE name such as "mrpc"; None for own data
    kind: TaskKind
    labels: tuple[str, ...]  # class names by id; () for regression and question answering
    metrics: tuple[str, ...]  # the first is the primary one
    pairs: bool | None = None  # whether a text comes with a second one; None: not known

    def __post_init__(self) -> None:
        fewest = _FEWEST_LABELS[self.kind]
        if fewest == 0 and self.labels:
            raise DataError(f"label names {', '.join(self.labels)} given for a {_in_words(self.kind)}; it has none")
        if len(self.labels) < fewest:
            few = "two" if fewest == 2 else "one"
            raise DataError(f"label names are {list(self.labels)}; a {_in_words(self.kind)} needs at least {few}")
        if len(set(self.labels)) < len(self.labels):
            raise DataError(f"label names are {list(self.labels)}; each may occur once")

    @property
    def primary(self) -> str:
        """The metric that checkpoints and sub-networks are chosen by."""
        return self.metrics[0]

    @property
    def outputs(self) -> int:
        """The number of model outputs: one a class, one score, or two (question answering): start and end."""
        return len(self.labels) or (2 if self.kind == "question-answering" else 1)

    def check_inputs(self, *, pairs: bool) -> None:
        """Refuse single texts where the model was trained on pairs, and pairs where it was trained on single texts.

        Args:
            pairs: whether those that are to be answered are pairs.

        Raises:
            DataError: if so; it says what is missing or too much.
        """
        if self.pairs is True and not pairs:
            raise DataError("the model was trained on pairs of texts; the second text is missing")
        if self.pairs is False and pairs:
            raise DataError("the model was trained on single texts; a second text is given")

    def to_dict(self) -> dict[str, Any]:
        """The task in JSON values; ``from_dict`` reads it back."""
        known = {} if self.pairs is None else {"pairs": self.pairs}
        rest = {"name": self.name, "kind": self.kind, "labels": list(self.labels), "metrics": list(self.metrics)}
        return rest | known

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Task":
        """The task that ``to_dict`` wrote."""
        labels, metrics = tuple(values["labels"]), tuple(values["metrics"])
        known = GLUE[values["name"]].task.pairs if values["name"] in GLUE else None  # older checkpoints do not say it
        return cls(values["name"], values["kind"], labels, metrics, values.get("pairs", known))


_FEWEST_LABELS: Mapping[TaskKind, int] = {
    "classification": 2,
    "regression": 0,
    "multi-label": 1,
    "token-classification": 2,
    "question-answering": 0,
}
_METRICS: Mapping[TaskKind, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "multi-label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "token-classification": ("entity_f1", "entity_precision", "entity_recall"),
    "question-answering": ("f1", "exact_match"),
}
_ENTITY_TAG = re.compile(r"O|[BIESLUM]-.+", re.DOTALL)  # BIO, BIOES, BILOU, BMES
_CERTAIN_ENTITY_TAG = re.compile(r"[BI]-.+", re.DOTALL)


def own_task(kind: TaskKind, labels: tuple[str, ...], *, pairs: bool | None = None) -> Task:
    """A task on the user's own data, with the metrics that suit its kind.

    Tags of words that are not all ``O`` or ``B-TYPE``, ``I-TYPE`` and the like mark no entities: the metric is then
    the accuracy of the words.

    Raises:
        DataError: some tags are ``B-TYPE`` or ``I-TYPE`` and others of no such form, or see `Task`.
    """
    plain = False
    if kind == "token-classification":
        fitting = entity_tags(labels)
        plain = not fitting
        if fitting and len(fitting) < len(labels):
            odd = next(label for label in labels if label not in fitting)
            raise DataError(f"tag {odd!r} stands among tags of entities; expected O or B-, I-, E-, S- and a type")
    return Task(None, kind, labels, ("accuracy",) if plain else _METRICS[kind], pairs)


def entity_tags(tags: Iterable[str]) -> frozenset[str]:
    """Those of the tags that mark entities; none where they mean something else, such as parts of speech.

    ``B-TYPE`` and ``I-TYPE`` say that entities are marked, so that a tag of another form beside them is a mistake and
    not another kind of tag.
    """
    all_tags = frozenset(tags)
    fitting = frozenset(tag for tag in all_tags if _ENTITY_TAG.fullmatch(tag))
    certain = any(_CERTAIN_ENTITY_TAG.fullmatch(tag) for tag in fitting)
    return fitting if certain or fitting == all_tags else frozenset()


_NAMED_KINDS: Mapping[str, TaskKind] = {"ner": "token-classification", "squad": "question-answering"}


def asked_kind(config: DataConfig) -> TaskKind | None:
    """The kind of task that the settings name, by ``task_type``, a task such as ``ner``, or a separator of labels.

    Returns:
        None where they name none.

    Raises:
        ConfigError: two that contradict each other.
    """
    kind = _NAMED_KINDS.get(_plain(config.task)) if config.task is not None else None
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
    def named(self) -> tuple[str, ...]:
        """Those that are set."""
        return tuple(name for name in (self.text, self.pair, self.label) if name is not None)

    @property
    def by_number(self) -> bool:
        """True where every column that is set is a position, so that the file has no header."""
        return self.text is not None and all(name.isdecimal() for name in self.named)


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task: what it predicts, and how its files and its Hub data set are laid out."""

    task: Task
    layouts: tuple[Columns, ...]  # columns it is found in: tried in this order
    dev: tuple[tuple[str, str], ...] = (("dev", "dev"),)  # (name of the part, stem of its file)
    unlabelled: tuple[str, ...] = ()  # labels that mean "the annotators did not agree": such rows are left out


HUB_GLUE = "nyu-mll/glue"  # the Hub data set; its configurations are named as the tasks here

_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCE = Columns("sentence", None, "label")
_SENTENCES = Columns("sentence1", "sentence2", "label")
_QUESTIONS = Columns("question1", "question2", "label")


def _classify(name: str, labels: tuple[str, ...], *metrics: str) -> Task:
    return Task(name, "classification", labels, metrics or ("accuracy",))


_TABLE = (
    GlueTask(_classify("cola", ("unacceptable", "acceptable"), "matthews"), (_SENTENCE, Columns("3", None, "1"))),
    GlueTask(_classify("sst2", ("negative", "positive")), (_SENTENCE,)),
    GlueTask(
        _classify("mrpc", ("not_equivalent", "equivalent"), "accuracy", "f1"),
        (Columns("#1 String", "#2 String", "Quality"), _SENTENCES),
    ),
    GlueTask(
        Task("stsb", "regression", (), ("pearson", "spearman")),
        (Columns("sentence1", "sentence2", "score"), _SENTENCES),
    ),
    GlueTask(
        _classify("qqp", ("not_duplicate", "duplicate"), "accuracy", "f1"),
        (Columns("question1", "question2", "is_duplicate"), _QUESTIONS),
    ),
    GlueTask(
        _classify("mnli", ("entailment", "neutral", "contradiction")),
        (Columns("sentence1", "sentence2", "gold_label"), Columns("premise", "hypothesis", "label")),
        dev=(("matched", "dev_matched"), ("mismatched", "dev_mismatched")),
        unlabelled=("-",),
    ),
    GlueTask(_classify("qnli", _ENTAILMENT), (Columns("question", "sentence", "label"),)),
    GlueTask(_classify("rte", _ENTAILMENT), (_SENTENCES,)),
    GlueTask(_classify("wnli", ("not_entailment", "entailment")), (_SENTENCES,)),
)
GLUE: Mapping[str, GlueTask] = {
    str(entry.task.name): replace(entry, task=replace(entry.task, pairs=entry.layouts[0].pair is not None))
    for entry in _TABLE
}


def glue_task(name: str) -> GlueTask:
    """The row of the GLUE table for a name in any common spelling, such as ``SST-2`` or ``sst2``.

    Raises:
        ConfigError: no GLUE task has this name.
    """
    plain = _plain(name)
    if plain not in GLUE:
        raise ConfigError(f"task is {name!r}; it must be one of {', '.join((*GLUE, *_NAMED_KINDS))}")
    return GLUE[plain]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _in_words(kind: TaskKind) -> str:
    return kind if kind in ("classification", "regression") else f"task of kind {kind}"
