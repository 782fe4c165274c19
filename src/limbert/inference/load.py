"""Open a checkpoint for use: the model, its tokenizer and the task that it answers."""

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import DataConfig, TrainConfig, require
from limbert.core.space import Space
from limbert.data.load import load_task_data
from limbert.data.readers import Examples
from limbert.data.split import reorder_labels, train_validation_split
from limbert.data.task_registry import tokenize_for_task as prepared_for
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, tokenize_texts
from limbert.errors import CheckpointError, ConfigError
from limbert.model.checkpoint import load_tokenizer
from limbert.model.elastic import ElasticModel


def resolve_device(name: str) -> torch.device:
    """The device that computes.

    Args:
        name: ``auto`` (the first GPU, where torch finds one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ConfigError: for another name, or a GPU that is not there.
    """
    require(re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None, "device", name, "auto, cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device is {name!r}; torch finds {count or 'no'} GPU{'s' * (count != 1)} on this machine")
    return device


def usable_cores() -> int:
    """Logical cores that this process may use; where the system knows no such limit, all."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint ready to answer.

    Attributes:
        model: in evaluation mode.
        tokenizer: saved with it.
        task: from ``limbert.json``; None for a stock checkpoint.
        data: how its training data was read; defaults for a stock checkpoint.
        max_length: longest input in tokens: the training's, or what the model has positions for if that is less.
    """

    model: ElasticModel
    tokenizer: PreTrainedTokenizerBase
    task: Task | None
    data_config: DataConfig
    max_length: int

    def tokenize(self, examples: Examples, *, task: Task | None = None, cache: bool = True) -> TokenizedExamples:
        """Examples as the training had them, tokenised.

        Args:
            examples: of the model's task.
            task: of a stock checkpoint, which does not know it.
            cache: whether to look for tokens of earlier runs and to keep these.

        Raises:
            ConfigError: if the tokenizer or the length cannot serve.
            DataError: for single texts where the training had pairs, or the other way round.
        """
        task = task or self.task
        if task is None:
            return tokenize_texts(examples, self.tokenizer, max_length=self.max_length, use_cache=cache)
        task.check_inputs(has_pairs=examples.pairs is not None)
        return prepared_for(
            examples, task, self.tokenizer, max_length=self.max_length, stride=self.data_config.stride, use_cache=cache
        )


def load_checkpoint(
    path: str | Path, *, space: Space | None = None, head: str | None = None, device: str = "cpu"
) -> LoadedCheckpoint:
    """Load an elastic checkpoint, or a stock one with a sequence classification head.

    Args:
        path: folder or hub name.
        space: instead of the checkpoint's own.
        head: see ``ElasticModel.from_pretrained``.
        device: that computes: see `device_of`.

    Raises:
        ConfigError: if there is no such device.
        CheckpointError: if it is missing or broken, or has no tokenizer.
        UnsupportedModelError: for a family that is not supported.
    """
    place = resolve_device(device)
    model = ElasticModel.from_pretrained(path, space=space, head=head)
    model.network.eval().to(place)  # type: ignore[arg-type]  # transformers' own `to` hides the types
    tokenizer = load_tokenizer(path)
    record = model.record
    saved = record.get("settings", {}).get("data", {})
    known = {field.name for field in fields(DataConfig)}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    try:
        task = Task.from_dict(record["task"]) if "task" in record else None
        data = DataConfig(**{name: value for name, value in values.items() if name in known})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"limbert.json of {path} is broken: {error}") from error
    return LoadedCheckpoint(model, tokenizer, task, data, min(data.max_length, model.max_input_length))


def load_validation_split(checkpoint: LoadedCheckpoint, data_config: DataConfig) -> Examples:
    """The rows that the training kept back, with class ids in the model's order.

    Args:
        opened: a model trained by Limbert.
        config: where its training data is now.

    Raises:
        CheckpointError: if the model does not say how it was trained.
        ConfigError: if the data is for other labels.
        DataError: if the data cannot be read.
    """
    saved = checkpoint.model.record.get("settings", {}).get("train")
    if saved is None or checkpoint.task is None:
        raise CheckpointError("limbert.json does not say how the model was trained; train it with limbert train")
    known = {name: saved[name] for name in ("seed", "validation", "validation_limit") if name in saved}
    settings = TrainConfig(model="-", output="-", **known)
    loaded = load_task_data(replace(data_config, augmented=None), seed=settings.seed)  # copies are never kept back
    task = checkpoint.task
    if {*loaded.task.labels} != {*task.labels} or loaded.task.task_type != task.task_type:
        raise ConfigError(f"the data has labels {', '.join(loaded.task.labels)}; the model {', '.join(task.labels)}")
    return train_validation_split(reorder_labels(loaded.train, loaded.task, task), task, settings)[1]
