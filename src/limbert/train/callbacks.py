"""Callbacks of elastic training: graceful stop, saving by time, divergence, grafting."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from limbert.errors import DivergedError
from limbert.method.grafting import graft
from limbert.method.importance import importance_from_micro_batches
from limbert.train.distributed import broadcast_weights, world_size

_stop_requested = threading.Event()  # by SIGINT or SIGTERM, of this process
_handled = threading.Event()  # whether the two signals set it


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Inside, SIGINT and SIGTERM set the event that it yields, which the running or next training obeys.

    A second signal ends a single process at once. Nests; without effect outside the main thread.
    """
    if _handled.is_set() or threading.current_thread() is not threading.main_thread():
        yield _stop_requested
        return

    def request(number: int, frame: Any) -> None:
        _stop_requested.set()
        if world_size() == 1:  # launchers pass on a signal that the terminal sends to all processes anyway
            signal.signal(number, previous[signal.Signals(number)])

    _handled.set()
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _stop_requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _handled.clear()
        _stop_requested.clear()


class GracefulStop(TrainerCallback):
    """Ends training after the running step, with a checkpoint, on a signal; saves every few seconds.

    With several processes, the stop and save flags of all are summed in the all-reduce of the gradients, so that all
    stop and save after the same step. On a GPU they are read at logging steps only: reading waits for the device.

    Attributes:
        requested: set it to stop from code.
        sum_of_flags: over all processes since the last step, ``(2,)``; set by the trainer.
    """

    def __init__(self) -> None:
        self.requested = False
        self.sum_of_flags: Tensor | None = None
        self._saved_at = time.monotonic()

    def stop_and_save_flags(self, args: Any) -> Tensor:
        """``(2,)``, on the CPU: whether this process is to stop, and to save."""
        due = args.save_seconds is not None and time.monotonic() - self._saved_at > args.save_seconds
        return torch.tensor([self.requested or _stop_requested.is_set(), due], dtype=torch.float32)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        flags = self.stop_and_save_flags(args) if self.sum_of_flags is None else self.sum_of_flags
        if flags.device.type != "cpu" and not control.should_log:
            return
        self.requested, save = (flags > 0).tolist()
        if state.global_step < state.max_steps and (self.requested or save):
            control.should_save = True
            control.should_training_stop |= self.requested

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved_at = time.monotonic()


class LogLastStep(TrainerCallback):
    """Logs the loss of a run's last steps too."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log |= state.global_step >= state.max_steps


class StopOnDivergence(TrainerCallback):
    """Ends a run whose loss is NaN or infinite."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise DivergedError(
                f"loss is {loss} at step {state.global_step}; try a lower learning rate, and check the labels"
            )


class Grafting(TrainerCallback):
    """Blends strong heads and neurons into weak ones, several times an epoch until the last epoch begins.

    Args:
        trainer: an `ElasticTrainer`, for its model and its data.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._steps: frozenset[int] = frozenset()

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        if args.grafts_per_epoch:
            steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
            self._steps = grafting_steps(args.grafts_per_epoch, steps_per_epoch=steps, max_steps=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self._steps:
            model = self._trainer.elastic
            scores = importance_from_micro_batches(model, self._trainer.importance_batches())
            graft(model, scores, rate=args.graft_rate, weak_fraction=args.graft_fraction)
            broadcast_weights(model.network)


def grafting_steps(grafts_per_epoch: int, *, steps_per_epoch: int, max_steps: int) -> frozenset[int]:
    """The steps after which weights are grafted: evenly spread over each epoch but the last."""
    every = steps_per_epoch / grafts_per_epoch if grafts_per_epoch else math.inf
    count = math.floor((max_steps - steps_per_epoch) / every)
    return frozenset(round(number * every) for number in range(1, count + 1))
