"""The processes that train one model together: which rows each one has, what they add up, and who writes.

There is no wrapper around the model: a step runs several passes over several sub-networks, and their gradients are
added up over all processes once, when the last pass is done. Every process has all examples and knows every batch, so
that nobody needs to be told which rows are whose.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from limbert.core.task_types import IGNORE_INDEX
from limbert.errors import ConfigError, ProcessError

Value = TypeVar("Value")

COLLECTIVE_TIMEOUT = timedelta(
    hours=6
)  # for a main process that prepares something alone; launchers notice dead ones sooner


@dataclass(frozen=True)
class LossScale:
    """How much of a step's batch one process has. Its mean losses times this add up to the means over the whole batch.

    Attributes:
        rows: its part of the rows, from 0 to 1: for losses that are means over rows.
        tokens: its part of the tokens that are no padding.
        labels: its part of the labels that count: all rows where labels are values, else those that are not -100; 0
            also where nobody has any.
        batch_rows: rows of the whole batch.
    """

    examples: float = 1.0
    tokens: float = 1.0
    labels: float = 1.0
    global_batch_size: int = 0


NO_LOSS_SCALE = LossScale()


@dataclass(frozen=True)
class DistributedContext:
    """Those that train together; by default the one alone, for which nothing here costs anything.

    Methods that say *together* must be called by all processes, in the same order.

    Attributes:
        count: how many there are.
        rank: this one's number; 0 is the main process, the only one that writes and speaks.
        here: this one's number on its own machine.
    """

    world_size: int = 1
    rank: int = 0
    local_rank: int = 0

    @classmethod
    def from_accelerator(cls, accelerator: Accelerator | PartialState) -> Self:
        """Those that accelerate knows of."""
        return cls(accelerator.num_processes, accelerator.process_index, max(0, accelerator.local_process_index))

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def shard_batch(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], LossScale]:
        """This process's rows of a batch that every process has.

        Every n-th row is taken, n being their count, since the rows of a batch are sorted by length. A process for
        which there is none takes the first with a share of 0, so that its passes reach the same weights as the others'.

        Args:
            batch: as `TokenizedExamples.collate` gives it, on the CPU.
        """
        rows = len(batch["attention_mask"])
        if self.world_size == 1:
            return batch, LossScale(labels=float(_count_labels(batch) > 0), global_batch_size=rows)
        mine = slice(self.rank, None, self.world_size) if self.rank < rows else slice(0, 1)
        part = {name: tensor[mine] for name, tensor in batch.items()}
        if self.rank >= rows:
            return part, LossScale(0.0, 0.0, 0.0, global_batch_size=rows)
        of_rows, of_tokens, of_labels = (
            counted(part) / max(1, counted(batch)) for counted in (_count_examples, _count_tokens, _count_labels)
        )
        return part, LossScale(of_rows, of_tokens, of_labels, global_batch_size=rows)

    def all_shards(self, batch: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], LossScale]]:
        """The parts of a batch that the processes would have, for one that goes through the whole batch alone.

        Parts without a label that counts are left out: the mean over none is no number.
        """
        for rank in range(self.world_size):
            part, share = replace(self, rank=rank).shard_batch(batch)
            if share.labels:
                yield {name: tensor.contiguous() for name, tensor in part.items()}, share  # stock losses view them

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], *, extra: Tensor) -> Tensor:
        """Replace every parameter's gradient by its sum over all processes, together, in one exchange.

        All gradients travel in one buffer in the order of the parameters, one that is not there as zeros; afterwards
        they are views of it. A parameter without a gradient stays without.

        Args:
            parameters: the same in all processes.
            also: ``(n,)``, summed with them.

        Returns:
            The sum of ``also``.

        Raises:
            ProcessError: if another process has ended.
        """
        if self.world_size == 1:
            return extra
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
        flat = torch.cat([gradient.flatten() for gradient in [*gradients, extra]])
        with _collective_errors():
            dist.all_reduce(flat)
        *sums, total = flat.split([weight.numel() for weight in parameters] + [len(extra)])
        for weight, summed in zip(parameters, sums, strict=True):
            if weight.grad is not None:
                weight.grad = summed.view_as(weight).to(weight.dtype)
        return total

    def broadcast_weights(self, network: nn.Module) -> None:
        """Give all processes the main one's weights, together."""
        if self.world_size > 1:
            with _collective_errors():
                for parameter in network.parameters():
                    dist.broadcast(parameter.detach(), src=0)

    def all_gather_object(self, value: Value) -> list[Value]:
        """What each process has, in the order of their numbers, together. For small things: they are pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _collective_errors():
            dist.all_gather_object(values, value)
        return values

    def run_on_main(self, function: Callable[[], Value]) -> Value:
        """Let the main process do something while the others wait, together; they get what it got, errors too."""
        if self.world_size == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_main_process:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        with _collective_errors():
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        value: Value = outcome[0]
        return value

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Together: one process of each machine runs the block, then its others, which find what it cached."""
        if self.local_rank > 0:
            self.all_gather_object(None)
        yield
        if self.local_rank == 0:
            self.all_gather_object(None)

    def check_equal(self, value: object, *, description: str) -> None:
        """Make sure that all processes found the same on their disks, together.

        Raises:
            ConfigError: if one found something else.
        """
        everywhere = self.all_gather_object(value)
        for rank, other in enumerate(everywhere):
            if other != everywhere[0]:
                raise ConfigError(
                    f"process {rank} finds {description} {other}, process 0 finds {everywhere[0]}; to go on with an "
                    "unfinished run its folder must be one that all machines share"
                )


SINGLE_PROCESS = DistributedContext()


def init_distributed() -> DistributedContext:
    """Join those that torchrun or accelerate launch started with this one; alone where there are none.

    Raises:
        ConfigError: if they cannot work together on this machine, or the launcher was told what no run here does.
    """
    accumulated = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulated != "1":  # accelerate would divide every loss by it, and nobody would add the steps up
        raise ConfigError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {accumulated!r}; it must be 1 or not set: "
            "Limbert takes a step a batch, of --batch-size rows in each process"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        return SINGLE_PROCESS
    cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    joined = DistributedContext.from_accelerator(PartialState(cpu=cpu, timeout=COLLECTIVE_TIMEOUT))
    if joined.world_size != started:
        raise ConfigError(
            f"{started} processes were started and accelerate joins {joined.world_size} on this kind of device; "
            "ACCELERATE_USE_CPU=1 trains on the CPU"
        )
    return joined


def is_first_failed_process() -> bool:
    """Whether no other process of the run has said why it ends: an error of all, or one that spreads, is told once."""
    if not dist.is_initialized():
        return int(os.environ.get("RANK", "0")) == 0
    try:
        return bool(dist.distributed_c10d._get_default_store().add("limbert failed", 1) == 1)
    except RuntimeError:  # the one that kept the count is gone
        return dist.get_rank() == 0


@contextmanager
def _collective_errors() -> Iterator[None]:
    """What goes wrong here is another process's end: that one says why."""
    try:
        yield
    except RuntimeError as error:
        reason = "another process of this run has ended; the same command goes on from what is saved"
        raise ProcessError(reason) from error


def _count_examples(batch: dict[str, Tensor]) -> int:
    return len(batch["attention_mask"])


def _count_tokens(batch: dict[str, Tensor]) -> int:
    return int(batch["attention_mask"].sum())


def _count_labels(batch: dict[str, Tensor]) -> int:
    labels = batch["labels"]
    return len(labels) if labels.is_floating_point() else int((labels != IGNORE_INDEX).sum())
