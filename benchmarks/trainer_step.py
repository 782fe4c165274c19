"""Single optimizer steps of an ElasticTrainer, outside its loop, for benchmarks and tests of a step."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbert import ElasticModel, ElasticTrainer, ElasticTrainingArguments
from limbert.core.config import PhaseConfig, TaskType
from limbert.core.subnet import Subnet
from limbert.train.data import LossScale
from limbert.train.phases import encoder_arguments

Step = Callable[..., Tensor]


def phase_trainer(
    phase: str,
    *,
    model: ElasticModel,
    teacher: ElasticModel | None,
    subnets: Mapping[str, Subnet],
    config: PhaseConfig,
    task_type: TaskType,
    device: str,
    precision: str = "fp32",
) -> ElasticTrainer:
    """A trainer of one phase without data."""
    args = ElasticTrainingArguments(
        tempfile.mkdtemp(prefix="limbert-"),
        phase=phase,
        task_type=task_type,
        seed=0,
        bf16=precision == "bf16",
        use_cpu=device == "cpu",
        disable_tqdm=True,
    )
    args = encoder_arguments(args, config, num_examples=config.batch_size, metric="loss")
    args = replace(args, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)  # there is no data
    return ElasticTrainer(model, args, teacher=teacher, subnets=subnets)


def optimizer_step(trainer: ElasticTrainer) -> Step:
    """A function ``step(batch, loss_scale=)`` that does what one step of the Trainer's loop does; it returns the loss.

    Args:
        trainer: its mode (dropout) is training.
    """
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    optimizer: Any = trainer.optimizer

    def step(batch: Mapping[str, Tensor], *, loss_scale: LossScale | None = None) -> Tensor:
        scale = loss_scale or LossScale(tokens=1.0, labels=1.0, batch_size=len(batch["input_ids"]))
        loss = trainer.training_step(trainer.model, dict(batch) | {"loss_scale": scale})
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        trainer.state.global_step += 1
        return loss

    return step
