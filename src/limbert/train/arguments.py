"""ElasticTrainingArguments: the settings of `transformers.TrainingArguments` plus those of elastic training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from limbert.core.config import TASK_TYPES, TaskType, config_field, require
from limbert.errors import ConfigError


@dataclass
class ElasticTrainingArguments(TrainingArguments):
    """Arguments of `ElasticTrainer`. All of `transformers.TrainingArguments`, and the fields below.

    Some defaults differ: losses that are NaN or infinite are not filtered but end the run, the newest and the best
    checkpoint are kept, callbacks such as early stopping continue from their saved state.

    Raises:
        ConfigError: for a value out of range, or an option that training several sub-networks cannot follow.
    """

    task_type: TaskType | None = config_field(None, "what the outputs mean (default: from the model's head and config)")
    label_weight: float | None = config_field(
        None, "weight of the loss on labels (default: 1 without a teacher, else 0)"
    )
    logit_weight: float = config_field(1.0, "weight of matching the teacher's logits")
    hidden_weight: float = config_field(0.1, "weight of matching the teacher's hidden states")
    teacher_width: Literal["full", "matched"] = config_field("full", "width of the teacher: full, or the student's")
    full_weight: float = config_field(1.0, "weight of the largest sub-network's loss among the others'")
    sampled_subnets: int = config_field(0, "sub-networks per step, the largest and the smallest always; 0 trains all")
    grafts_per_epoch: int = config_field(0, "neural graftings per epoch, until the last epoch; 0 for none")
    graft_rate: float = config_field(0.1, "fraction of the stronger head or neuron blended into the weaker")
    graft_fraction: float = config_field(0.5, "fraction of the heads and neurons that counts as the weaker ones")
    class_weights: Sequence[float] | str | None = config_field(
        None, "weight of each class in the label loss, or 'balanced': inversely proportional to its frequency"
    )
    baseline: float | None = config_field(
        None, "metric_for_best_model of a constant prediction: no validation at or below it is called the best so far"
    )
    max_length: int = config_field(128, "longest input in tokens, for datasets with text columns")
    text_columns: Sequence[str] | None = config_field(
        None, "one or two columns with text (default: all string columns except labels, id and idx)"
    )
    save_seconds: float | None = config_field(None, "save a checkpoint each time this many seconds have passed")
    phase: str = config_field("train", "name of the phase, for seeds and messages")

    logging_nan_inf_filter: bool = config_field(
        False, "replace losses that are NaN or infinite by the mean of the others"
    )
    save_total_limit: int | None = config_field(
        2, "checkpoints that are kept, the newest and the best always among them"
    )
    restore_callback_states_from_checkpoint: bool = config_field(True, "continue callbacks from their saved state")
    hub_strategy: HubStrategy | str = config_field("end", "when to push to the Hub")

    def __new__(cls, *_: Any, **named: Any) -> "ElasticTrainingArguments":
        args = super().__new__(cls)
        vars(args)["_named"] = {*named}
        return args

    @property
    def given(self) -> set[str]:
        """Names of the arguments that differ from their defaults or were named when this object was made.

        If all were, as by `dataclasses.replace` or a parser, only the differences count.
        """
        named, default = vars(self)["_named"], type(self)("-", use_cpu=self.use_cpu).to_dict()
        changed = {name for name, value in self.to_dict().items() if value != default[name]}
        return changed | (named if len(named) < sum(item.init for item in fields(self)) else set())

    @property
    def path(self) -> Path:
        """The output folder."""
        return Path(str(self.output_dir))

    def __post_init__(self) -> None:
        for name, reason in _UNSUPPORTED.items():
            if getattr(self, name):
                raise ConfigError(f"{name} is set; ElasticTrainer does not support it: {reason}")
        checks: dict[str, tuple[bool, str]] = {
            "save_total_limit": (self.save_total_limit != 1, "None or at least 2: the newest and the best checkpoint"),
            "train_sampling_strategy": (
                self.train_sampling_strategy in ("random", "group_by_length"),
                "random or group_by_length: batches are always random and of similar lengths",
            ),
            "task_type": (self.task_type in (None, *TASK_TYPES), ", ".join(TASK_TYPES)),
            "teacher_width": (self.teacher_width in ("full", "matched"), "full or matched"),
            "sampled_subnets": (self.sampled_subnets == 0 or self.sampled_subnets >= 2, "0 or at least 2"),
            "graft_rate": (0 < self.graft_rate < 1, "between 0 and 1"),
            "graft_fraction": (0 < self.graft_fraction <= 0.5, "above 0 and at most 0.5"),
        }
        for name in ("label_weight", "logit_weight", "hidden_weight", "full_weight", "grafts_per_epoch"):
            checks[name] = ((getattr(self, name) or 0) >= 0, "0 or more")
        for name, (holds, allowed) in checks.items():
            require(holds, name, getattr(self, name), allowed)
        super().__post_init__()


_UNSUPPORTED = {  # options that would be ignored or fail late
    "fsdp": "start several processes with torchrun, each holds the whole model",
    "deepspeed": "start several processes with torchrun, each holds the whole model",
    "parallelism_config": "only data parallelism, with torchrun",
    "torch_compile": "the network changes with every sub-network",
    "auto_find_batch_size": "choose per_device_train_batch_size, with gradient_accumulation_steps for the rest",
    "fp16": "use bf16",
    "batch_eval_metrics": "one function cannot collect the batches of several sub-networks; leave it out",
    "dataloader_drop_last": "the last, smaller batch is trained on",
    "use_liger_kernel": "its kernels replace the layers that sub-networks slice",
    "neftune_noise_alpha": "its noise would not reach the embeddings that sub-networks share",
}
