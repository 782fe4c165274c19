"""A `transformers.Trainer` that leaves the model unwrapped, with Limbert's schedule; and the seeds of steps."""

import logging
import time
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import SchedulerType

from limbert.train.arguments import ElasticTrainingArguments

logger = logging.getLogger(__name__)


class UnwrappedTrainer(Trainer):
    """A Trainer without DistributedDataParallel and without autocast around ``forward``.

    The linear schedule starts above 0: with ``w`` warm-up steps, step ``s`` (from 0) has ``(s + 1) / w`` of the
    learning rate; weight decay applies to all weights.

    Attributes:
        examples_seen: over all processes since the last log.
        speed_since: when that was; moved on by what is no training.
    """

    args: ElasticTrainingArguments
    model: Any  # transformers' types allow None and dictionaries everywhere
    train_dataset: Any
    eval_dataset: Any

    def __init__(self, model: nn.Module, args: ElasticTrainingArguments, **options: Any) -> None:
        config = getattr(model, "config", None)
        use_cache = getattr(config, "use_cache", None)
        if args.device.type == "cuda" and args.n_gpu > 1:
            logger.warning("training on one of %d GPUs; start with torchrun to use all of them", args.n_gpu)
            args._n_gpu = 1  # else the stock Trainer splits every batch over threads
        super().__init__(model, args, **options)
        if config is not None and use_cache is not None:
            config.use_cache = use_cache  # the stock Trainer sets it, and saves it with every checkpoint
        if args.disable_tqdm:
            self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # True counts the labels of every step in all processes
        self.examples_seen, self.speed_since = 0, time.monotonic()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = lambda model, **_: model

    def same_batches_loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """A loader that gives the same batches in every process, on the device; it tells its sampler the epoch."""
        return prepare_data_loader(
            self.loader(dataset, **options),
            device=self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=True,
        )

    def loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """A DataLoader with the workers that the arguments set."""
        args = self.args
        return DataLoader(
            dataset,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            **options,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None and self.args.lr_scheduler_type == SchedulerType.LINEAR:
            warmup = self.args.get_warmup_steps(num_training_steps)
            factor = partial(linear_schedule, warmup_steps=warmup, max_steps=num_training_steps)
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.monotonic()
            logs["examples_per_second"] = self.examples_seen / max(now - self.speed_since, 1e-9)
            self.examples_seen, self.speed_since = 0, now
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the stock estimate assumes one pass of the full network


def linear_schedule(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """Fraction of the learning rate at a step from 0: linear warm-up, then linear decay to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


def step_seed(seed: int, name: str, step: int) -> int:
    """A seed for every step of every phase."""
    text = f"{seed} {name} {step}".encode()
    value = 14695981039346656037  # FNV-1a: the same on every machine, unlike hash()
    for byte in text:
        value = (value ^ byte) * 1099511628211 % 2**64
    return value % 2**63
