"""Open a checkpoint for use: the model, its tokenizer and the task that it answers."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbert.core.config import DataConfig
from limbert.core.space import Space
from limbert.data.tokenize import TokenizedExamples, tokenize
from limbert.data.readers import Examples
from limbert.data.task_registry import prepared as prepared_for
from limbert.data.tasks import Task
from limbert.errors import CheckpointError
from limbert.model.checkpoint import load_tokenizer
from limbert.model.elastic import ElasticModel
from limbert.evaluation.hardware import device_of


@dataclass(frozen=True)
class Opened:
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
    data: DataConfig
    max_length: int

    def prepared(self, examples: Examples, *, task: Task | None = None, cache: bool = True) -> TokenizedExamples:
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
            return tokenize(examples, self.tokenizer, max_length=self.max_length, cache=cache)
        task.check_inputs(pairs=examples.pairs is not None)
        return prepared_for(
            examples, task, self.tokenizer, max_length=self.max_length, stride=self.data.stride, cache=cache
        )


def open_checkpoint(
    path: str | Path, *, space: Space | None = None, head: str | None = None, device: str = "cpu"
) -> Opened:
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
    place = device_of(device)
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
    return Opened(model, tokenizer, task, data, min(data.max_length, model.longest_input))
