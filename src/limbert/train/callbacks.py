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
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from limbert.errors import DivergedError
from limbert.method.grafting import graft
from limbert.method.importance import importance_from_micro_batches
from limbert.train.distributed import broadcast_weights, world_size


class GracefulStop(TrainerCallback):
    """Ends training after the running step, with a checkpoint, on SIGINT or SIGTERM; saves every few seconds.

    With several processes the wishes of all travel with the gradients (`votes`), so that all stop and save after the
    same step. On a GPU they are read at logging steps only: reading waits for the device.

    Attributes:
        requested: set it to stop from code.
    """

    def __init__(self) -> None:
        self.requested = False
        self._saved = time.monotonic()
        self._votes: Tensor | None = None  # sums of all processes since the last step

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle the two signals inside, in the main thread only; a second one ends a single process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: Any) -> None:
            self.requested = True
            if world_size() == 1:  # launchers pass on a signal that the terminal sends to all processes anyway
                signal.signal(number, previous[signal.Signals(number)])

        previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def votes(self, args: Any, device: torch.device) -> Tensor:
        """``(2,)``: whether this process wants to stop, and to save."""
        return torch.tensor([float(self.requested), float(self._save_due(args))], device=device)

    def set_votes(self, votes: Tensor) -> None:
        """Take the sums of all processes' votes."""
        self._votes = votes

    def _save_due(self, args: Any) -> bool:
        return args.save_seconds is not None and time.monotonic() - self._saved > args.save_seconds

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._votes is None:
            stop, save = self.requested, self._save_due(args)
        elif self._votes.device.type == "cpu" or control.should_log:
            stop, save = (self._votes > 0).tolist()
        else:
            return
        self.requested = stop
        if state.global_step < state.max_steps and (stop or save):
            control.should_save = True
            control.should_training_stop |= stop

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()


class LogLastStep(TrainerCallback):
    """Logs the loss of a run's last steps too."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_log |= state.global_step >= state.max_steps


class StopOnDivergence(TrainerCallback):
    """Ends a run whose loss is no number any more."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise DivergedError(
                f"loss is {loss} at step {state.global_step}; try a lower learning rate, and check the labels"
            )


class Grafting(TrainerCallback):
    """Blends strong heads and neurons into weak ones, several times an epoch until the last epoch begins.

    Args:
        trainer: an `ElasticTrainer`, for its model, its data and its number of steps.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._steps: frozenset[int] = frozenset()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        steps_per_epoch = self._trainer.steps_per_epoch
        self._steps = grafting_steps(args.grafts_per_epoch, steps_per_epoch=steps_per_epoch, max_steps=state.max_steps)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
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


class BroadcastWeights(TrainerCallback):
    """Starts all processes from the main process's weights."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        broadcast_weights(model)
