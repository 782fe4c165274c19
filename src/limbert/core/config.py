"""The settings of a run, one frozen dataclass a concern; the ``help`` of a field is the command's help."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from limbert.errors import ConfigError

TaskKind = Literal["classification", "regression"]
Precision = Literal["fp32", "bf16"]


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its default and the sentence that explains it to a user."""
    return field(default=default, metadata={"help": text})


def help_of(config: type, name: str) -> str:
    """The help sentence of one field of a config dataclass."""
    return next(item.metadata["help"] for item in fields(config) if item.name == name)


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError ``name VALUE: must be ALLOWED`` unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}")


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from and how to read them."""

    task: str | None = setting(None, "GLUE task (cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, wnli); omit for own data")
    data: str | None = setting(None, "folder with train.* and dev.* (and optionally test.*), or a Hub data set name")
    train: str | None = setting(None, "training file: CSV, TSV, JSONL or Parquet (instead of --data)")
    dev: str | None = setting(None, "development file, only ever reported on (instead of --data)")
    text_column: str | None = setting(None, "column with the text (default: the task's, or the first column of text)")
    pair_column: str | None = setting(None, "column with the second text of a pair (default: the task's, or none)")
    label_column: str | None = setting(None, "column with the label (default: the task's, or 'label')")
    task_type: TaskKind | None = setting(None, "classification or regression (default: follows from the labels)")
    label_names: tuple[str, ...] | None = setting(None, "label names in the order of their ids (default: from the data)")
    train_limit: int | None = setting(None, "use only this many training rows, chosen by the seed")
    skip_bad_rows: bool = setting(False, "skip malformed rows and say how many, instead of stopping at the first")
    max_length: int = setting(128, "longest input in tokens; longer ones are cut")

    def __post_init__(self) -> None:
        require(self.task_type in (None, "classification", "regression"), "task type", self.task_type,
                "classification or regression")
        require(self.train_limit is None or self.train_limit > 0, "train limit", self.train_limit, "at least 1")
        require(self.max_length >= 4, "maximum length", self.max_length, "at least 4 tokens")
