"""Collective operations of the processes that train one model together, built on torch.distributed.

A step runs several passes over several sub-networks, so there is no wrapper around the model: gradients are summed
over all processes once, after the last pass. Functions marked *collective* are called by all processes in one order.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

from limbert.errors import ConfigError, ProcessError

Value = TypeVar("Value")

_TIMEOUT = timedelta(hours=6)  # one process may evaluate for long; launchers notice a dead one sooner
_ERROR_WORDS = ("gloo", "nccl", "connection", "peer", "timed out", "broken pipe", "process group", "distributed")


@contextmanager
def collective_errors() -> Iterator[None]:
    """Turn the failure of an exchange into a ProcessError: its cause is the end of another process."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not any(word in str(error).lower() for word in _ERROR_WORDS):
            raise
        message = "another process of this run has ended; run the same command to resume from the last checkpoint"
        raise ProcessError(message) from error


def init_distributed() -> int:
    """Join the process group of torchrun or accelerate launch, if any; the number of processes.

    Raises:
        ConfigError: if they cannot work together on this machine, or the launcher sets an unsupported option.
    """
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":  # the Trainer has its own setting and would ignore this one
        raise ConfigError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {accumulation!r}; it must be 1 or not set: "
            "use gradient_accumulation_steps of ElasticTrainingArguments, or a larger --batch-size"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
        joined = PartialState(cpu=cpu, timeout=_TIMEOUT).num_processes
        if joined != started:
            raise ConfigError(
                f"{started} processes were started and accelerate joins {joined} on this type of device; "
                "ACCELERATE_USE_CPU=1 trains on the CPU"
            )
    return started


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; 0 is the main process, the only one that writes results."""
    return dist.get_rank() if dist.is_initialized() else 0


@collective_errors()
def all_reduce_gradients(parameters: Sequence[nn.Parameter], *, extra: Tensor) -> Tensor:
    """Collective: replace every gradient by its sum over all processes, in one exchange; the sum of ``extra`` ``(n,)``.

    Gradients travel in one buffer, a missing one as zeros, and are views of it afterwards.
    """
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
    flat = torch.cat([gradient.flatten() for gradient in [*gradients, extra.to(gradients[0], non_blocking=True)]])
    dist.all_reduce(flat)
    *sums, total = flat.split([weight.numel() for weight in parameters] + [len(extra)])
    for weight, summed in zip(parameters, sums, strict=True):
        if weight.grad is not None:
            weight.grad = summed.view_as(weight).to(weight.dtype)
    return total


@collective_errors()
def broadcast_weights(network: nn.Module) -> None:
    """Collective: give all processes the main process's weights."""
    if world_size() > 1:
        for parameter in network.parameters():
            dist.broadcast(parameter.detach(), src=0)


@collective_errors()
def all_gather_object(value: Value) -> list[Value]:
    """Collective: the value of each process, by rank. For small values: they are pickled between the processes."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_dict(mine: dict[str, Value]) -> dict[str, Value]:
    """Collective: the entries of all processes."""
    return {key: value for part in all_gather_object(mine) for key, value in part.items()}


def run_on_main(function: Callable[[], Value]) -> Value:
    """Collective: call a function in the main process; all processes return its value or raise its error."""
    value: Any = None
    error: Exception | None = None
    if rank() == 0:
        try:
            value = function()
        except Exception as raised:
            error = raised
    value, error = all_gather_object((value, error))[0]
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def check_equal(value: object, *, description: str) -> None:
    """Collective: ConfigError unless all processes found the same on their disks."""
    values = all_gather_object(value)
    for index, other in enumerate(values):
        if other != values[0]:
            raise ConfigError(
                f"process {index} finds {description} {other}, process 0 finds {values[0]}; to resume an unfinished "
                "run its folder must be on a disk that all machines share"
            )


def is_first_failed_process() -> bool:
    """Whether no other process has reported an error yet, so that an error of all processes is printed once."""
    if not dist.is_initialized():
        return int(os.environ.get("RANK", "0")) == 0
    try:
        return bool(dist.distributed_c10d._get_default_store().add("limbert failed", 1) == 1)
    except RuntimeError:  # the process that holds the store has ended
        return rank() == 0
