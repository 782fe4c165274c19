"""Loading a trained checkpoint: model, tokenizer, task, data settings and device."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import DataConfig, TrainConfig, require
from limbert.data.load import load_task_data
from limbert.data.long_texts import LongTexts, count_truncated, tokenize_in_windows
from limbert.data.readers import Examples
from limbert.data.split import reorder_labels, train_validation_split
from limbert.data.task_registry import tokenize_for_task
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, tokenize_texts
from limbert.errors import CheckpointError, ConfigError, DataError
from limbert.model.checkpoint import load_tokenizer, read_record
from limbert.model.elastic import ElasticModel

_logger = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """The device called ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:1``."""
    require(re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None, "device", name, "auto, cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device is {name!r}; torch finds {count or 'no'} GPU{'s' * (count != 1)} on this machine")
    return device


def usable_cores() -> int:
    """Logical cores that this process may use; all of them where the system has no CPU affinity."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def saved_data_config(record: Mapping[str, Any]) -> DataConfig:
    """How the training data was read, from ``limbert.json``; defaults where it says nothing."""
    saved, known = record.get("settings", {}).get("data", {}), {field.name for field in fields(DataConfig)}
    values: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in saved.items()}
    return DataConfig(**{key: value for key, value in values.items() if key in known})


def override_data_config(saved: DataConfig, **overrides: Any) -> DataConfig:
    """A run's data settings with some replaced; overrides that are None, False or empty change nothing."""
    known = {field.name for field in fields(DataConfig)}
    for name in overrides:
        require(name in known, "data setting", name, f"one of {', '.join(sorted(known))}")
    given: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value for name, value in overrides.items() if value
    }
    if given.keys() & {"data", "train", "dev"}:  # the files given now replace all of the training's files
        saved = replace(saved, data=None, train=None, dev=None, skip_bad_rows=False)
    if given:  # other examples than in training, or read in another way
        saved = replace(saved, fingerprints=None)
    return replace(saved, **given)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint ready for predictions."""

    model: ElasticModel  # in evaluation mode, on its device
    tokenizer: PreTrainedTokenizerBase  # saved with it
    task: Task | None  # from ``limbert.json``; None for a stock checkpoint
    data_config: DataConfig  # how its training data was read; defaults for a stock checkpoint
    max_length: int  # longest input in tokens: the training's, or what the model has positions for if that is less
    path: str = ""  # folder or Hub id

    @property
    def trained_task(self) -> Task:
        """The task that Limbert trained the model for."""
        if self.task is None:
            reason = "is an encoder without a task" if self.model.record else "has no limbert.json"
            raise CheckpointError(f"{self.path} {reason}; train it with limbert train first")
        return self.task

    def tokenize(
        self, examples: Examples, *, task: Task | None = None, long_texts: LongTexts = "truncate"
    ) -> TokenizedExamples:
        """Tokenise examples with the settings of the training, without the token cache.

        A stock checkpoint does not record its task.

        Raises:
            DataError: for a text with a token that the model has no embedding for.
        """
        require(long_texts in ("truncate", "windows"), "long texts", long_texts, "truncate or windows")
        task = task or self.task
        lengths: dict[str, Any] = {"max_length": self.max_length, "stride": self.data_config.stride}
        if task is not None:
            task.check_inputs(has_pairs=examples.pairs is not None)
        if task is None:
            tokens = tokenize_texts(examples, self.tokenizer, max_length=self.max_length, use_cache=False)
        elif long_texts == "windows":
            tokens = tokenize_in_windows(examples, task, self.tokenizer, **lengths)
        else:
            tokens = tokenize_for_task(examples, task, self.tokenizer, use_cache=False, **lengths)
        highest, vocab_size = int(tokens.tokens.ids.max(initial=0)), self.model.config.vocab_size
        if highest >= vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise DataError(f"a text has token {token!r} (id {highest}); {self.path} embeds ids below {vocab_size}")
        return tokens

    def with_data_config(self, **overrides: Any) -> "LoadedCheckpoint":
        """The same with other settings of reading files."""
        return replace(self, data_config=replace(self.data_config, **overrides))

    def log_inputs(self, source: str, examples: Examples, tokens: TokenizedExamples) -> None:
        """Log where the examples are from, their number, and how many of them are truncated."""
        truncated = count_truncated(examples, tokens, self.tokenizer, max_length=self.max_length)
        note = f", {truncated} truncated at {self.max_length} tokens (see --long-texts)" if truncated else ""
        _logger.info("%s: %d example%s%s", source, len(examples), "s" * (len(examples) != 1), note)


def load_checkpoint(path: str | Path, *, head: str | None = None, device: str = "cpu") -> LoadedCheckpoint:
    """Load an elastic checkpoint, or a stock one with a sequence classification head, from a folder or the Hub.

    For ``head`` see ``ElasticModel.from_pretrained``.
    """
    path = os.path.expanduser(path)
    torch_device = resolve_device(device)
    try:
        model = ElasticModel.from_pretrained(path, head=head)
    except CheckpointError as error:
        if Path(path).is_dir() and not read_record(path):
            raise CheckpointError(f"{path} has no limbert.json; train it with limbert train first ({error})") from error
        if Path(path).exists() or "no checkpoint folder" in str(error):
            raise
        raise CheckpointError(f"there is no folder {path}, nor a model of this name on the Hub") from error
    model.network.eval().to(torch_device)  # type: ignore[arg-type]  # transformers' own `to` hides the types
    tokenizer = load_tokenizer(path)
    record = model.record
    try:
        task = Task.from_dict(record["task"]) if record.get("task") else None
        data = saved_data_config(record)
        if task is not None and task.num_outputs != model.config.num_labels:
            raise ValueError(f"its task has {task.num_outputs} outputs, the model {model.config.num_labels}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"limbert.json of {path} is broken: {error}") from error
    return LoadedCheckpoint(model, tokenizer, task, data, min(data.max_length, model.max_input_length), path)


def load_validation_split(checkpoint: LoadedCheckpoint, data_config: DataConfig) -> Examples:
    """The validation split of the training data, with label ids in the model's order."""
    saved = checkpoint.model.record.get("settings", {}).get("train")
    if saved is None or checkpoint.task is None:
        raise CheckpointError("limbert.json does not say how the model was trained; train it with limbert train")
    known = {name: saved[name] for name in ("seed", "validation", "validation_limit") if name in saved}
    train_config = TrainConfig(model="-", output="-", **known)
    loaded = load_task_data(replace(data_config, augmented=None), seed=train_config.seed)
    task = checkpoint.task
    if {*loaded.task.labels} != {*task.labels} or loaded.task.task_type != task.task_type:
        raise ConfigError(f"the data has labels {', '.join(loaded.task.labels)}; the model {', '.join(task.labels)}")
    return train_validation_split(reorder_labels(loaded.train, loaded.task, task), task, train_config)[1]


def warn_if_untrained(model: ElasticModel, subnet_name: str) -> None:
    """Log a warning for a sub-network that no phase has trained."""
    if model.record and model.subnet(subnet_name) not in {**model.subnets(), **model.searched_subnets()}.values():
        _logger.warning("%s was not trained; trained are %s", subnet_name, ", ".join(model.subnets()))


def warn_about_skipped_rows(splits: Mapping[str, Examples]) -> None:
    """Log how many malformed rows of each dataset were skipped."""
    for name, examples in splits.items():
        if examples.bad_rows:
            _logger.warning("%d malformed row%s of %s skipped", examples.bad_rows, "s" * (examples.bad_rows > 1), name)
