"""The validation slice of a trained model: the rows that its training kept back, found again by its settings."""

from dataclasses import replace

from limbert.core.config import DataConfig, TrainConfig
from limbert.data.readers import Examples
from limbert.data.load import load_task_data
from limbert.errors import CheckpointError, ConfigError
from limbert.inference.load import Opened
from limbert.inference.base_model import in_order_of, kept_back


def validation_slice(opened: Opened, config: DataConfig) -> Examples:
    """The rows that the training kept back, with class ids in the model's order.

    Args:
        opened: a model trained by Limbert.
        config: where its training data is now.

    Raises:
        CheckpointError: if the model does not say how it was trained.
        ConfigError: if the data is for other labels.
        DataError: if the data cannot be read.
    """
    saved = opened.model.record.get("settings", {}).get("train")
    if saved is None or opened.task is None:
        raise CheckpointError("limbert.json does not say how the model was trained; train it with limbert train")
    known = {name: saved[name] for name in ("seed", "validation", "validation_limit") if name in saved}
    settings = TrainConfig(model="-", output="-", **known)
    loaded = load_task_data(replace(config, augmented=None), seed=settings.seed)  # copies are never kept back
    task = opened.task
    if {*loaded.task.labels} != {*task.labels} or loaded.task.kind != task.kind:
        raise ConfigError(f"the data has labels {', '.join(loaded.task.labels)}; the model {', '.join(task.labels)}")
    return kept_back(in_order_of(loaded.train, loaded.task, task), task, settings)[1]
