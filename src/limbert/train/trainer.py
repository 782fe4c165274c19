"""The training loop: one phase, a few sub-networks a step, their gradients added up.

It does not know phases by name: which sub-networks, what teacher and what loss come from outside. What is random in
a step follows from the seed and the step's number alone, so that an interrupted run goes on bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from limbert.core.config import PhaseConfig, TaskKind
from limbert.core.subnet import Subnet
from limbert.errors import DivergedError, Stopped
from limbert.method.losses import hidden_loss, label_loss, logit_loss, matched_states
from limbert.model.elastic import ElasticModel
from limbert.model.layerwise import with_ready_mask
from limbert.model.shared_forward import Answer, SharedPass, SharedStart, plan_passes, run_pass, train_pass
from limbert.train.context import Surroundings, TrainingRows, step_seed
from limbert.train.distributed import WHOLE, Processes, Share
from limbert.train.progress import Progress
from limbert.train.run_folder import TrainingState, latest_state, save_state

REPORT_EVERY = 10  # steps between reports; each waits for the device once


class Trainer:
    """Trains the sub-networks of one phase.

    Args:
        name: the phase's, for reports and saved states.
        model: trained in place.
        teacher: what to match; None where the loss asks for labels only. Its weights stay.
        subnets: trained sub-networks, largest first.
        config: the phase's settings.
        kind: what the model's outputs mean.
        surroundings: what holds for all phases.
    """

    def __init__(
        self,
        name: str,
        *,
        model: ElasticModel,
        teacher: ElasticModel | None,
        subnets: Sequence[Subnet],
        config: PhaseConfig,
        kind: TaskKind,
        surroundings: Surroundings,
    ) -> None:
        self.name = name
        self.model = model
        self.teacher = teacher
        self.subnets = tuple(subnets)
        self.config = config
        self.kind = kind
        self.around = surroundings
        self.processes = Processes.of(surroundings.accelerator)
        self._asked_to_stop = torch.zeros(())  # in how many processes, known since the last step
        self._trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trained,
            lr=config.learning_rate,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def fit(
        self, examples: TrainingRows, validate: Callable[[], float], *, graft: Callable[[], None] = lambda: None
    ) -> None:
        """Train the phase to its end, from its saved state if there is one; the best validated weights stay.

        Args:
            examples: labelled training rows, all of them in every process.
            validate: scores the model as it is, higher is better; the same in all processes.
            graft: changes the weights in place; called as often as the settings say.

        Raises:
            Stopped: when asked to stop, after saving the state.
            StorageError: if a state cannot be saved; the one before stays.
            DivergedError: if the loss is no number any more.
        """
        config, around = self.config, self.around
        per_epoch = math.ceil(len(examples) / config.batch_size)
        steps = math.ceil(config.epochs * per_epoch)
        steps = min(steps, config.max_steps or steps)
        validate_every = math.ceil(per_epoch / config.evaluations)
        grafted = grafting_steps(config.grafts, per_epoch=per_epoch, steps=steps)
        folder = around.workspace.folder
        state = latest_state(folder, self.name, network=self.model.network, optimizer=self.optimizer)
        state = state or TrainingState(self.name)
        self.processes.agree_on(state.step, what=f"a saved state of phase {self.name} after step")
        self.processes.share_weights(self.model.network)
        around.workspace.rewind_log(self.name, state.step)
        around.monitor.phase_starts(self.name, step=state.step, steps=steps)
        self.model.network.train()
        losses: list[Tensor] = []
        rows, reported, saved = 0, time.monotonic(), time.monotonic()
        for batch, share in self._batches(examples, start=state.step, steps=steps):
            rate = self._learning_rate(state.step, steps)
            losses.append(self.step(batch, number=state.step, learning_rate=rate, share=share))
            rows += share.batch_rows
            state.step += 1
            if state.step % REPORT_EVERY == 0 or state.step == steps:
                loss, now = torch.stack(losses).mean().item(), time.monotonic()  # waits for the device
                if not math.isfinite(loss):
                    reason = f"loss is {loss} at step {state.step}; try a lower learning rate, and look at the labels"
                    raise DivergedError(reason)
                self._report(state.step, steps, loss=loss, rate=rate, speed=rows / (now - reported))
                losses, rows, reported = [], 0, now
            pause = time.monotonic()
            if state.step in grafted:
                graft()
            if state.step % validate_every == 0 or state.step == steps:
                self._validate(state, validate)
            if self._should_stop(state.step) and state.step < steps:
                self.processes.from_main(lambda: self._save(state))
                raise Stopped(f"stopped in phase {self.name} after step {state.step} of {steps}")
            if time.monotonic() - saved > around.checkpoint_every and state.step < steps:
                self._save(state)
                saved = time.monotonic()
            reported += time.monotonic() - pause  # the rate is that of training alone
        if state.best is not None:
            self.model.network.load_state_dict(state.best)
        self.model.network.eval()

    def step(self, batch: dict[str, Tensor], *, number: int, learning_rate: float, share: Share = WHOLE) -> Tensor:
        """One optimizer step: each chosen sub-network sees the batch and their gradients add up.

        Args:
            batch: this process's rows, on the device.
            number: of the step in the phase.
            learning_rate: of this step.
            share: how much of the whole batch these rows are.

        Returns:
            The mean loss of a sub-network over the whole batch, a scalar on the device.

        Raises:
            ProcessError: if another process has ended.
        """
        own = f" in process {self.processes.rank}" if self.processes.rank else ""
        torch.manual_seed(step_seed(self.around.seed, self.name + own, number))  # dropout, wherever the run began
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        inputs = with_ready_mask(inputs, self.model.network, self.model.family)  # else every pass waits for the device
        chosen = self._choose(number)
        total = torch.zeros((), device=self.model.network.device)
        targets: dict[Subnet, Answer] = {}
        with self.around.accelerator.autocast():
            start = SharedStart.of(self.model, inputs)
        for shared in plan_passes(chosen):
            targets = self._targets(shared, inputs, known=targets)
            with self.model.at(shared.scope):  # backward stays inside: checkpointing runs the forward again
                total += self._pass(shared, inputs, batch, start=start, targets=targets, share=share)
        start.backward()
        loss = self._add_up(total / len(chosen))
        self.around.accelerator.clip_grad_norm_(self.model.network.parameters(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _pass(
        self,
        shared: SharedPass,
        inputs: dict[str, Tensor],
        batch: dict[str, Tensor],
        *,
        start: SharedStart,
        targets: dict[Subnet, Answer],
        share: Share,
    ) -> Tensor:
        """Adds the gradients of the sub-networks that one pass serves; the sum of their losses."""

        def loss(subnet: Subnet, answer: Answer) -> Tensor:
            weight = self.config.full_weight if subnet == self.model.full else 1.0
            target = targets[self._teacher_of(subnet)] if targets else None
            return weight * self._loss(subnet, answer, target, batch=batch, share=share)

        return train_pass(
            self.model,
            shared,
            inputs,
            start=start,
            loss=loss,
            backward=self.around.accelerator.backward,
            precision=self.around.accelerator.autocast,
        )

    def _loss(
        self, subnet: Subnet, answer: Answer, target: Answer | None, *, batch: dict[str, Tensor], share: Share
    ) -> Tensor:
        """This process's part of a loss: a mean over what it has, times its share of what that mean is over."""
        config, logits = self.config, answer.logits.float()
        total = torch.zeros((), device=logits.device)
        labels, mask = batch["labels"], batch["attention_mask"]
        if not share.labels:  # the mean over none is no number; the pass reaches the same weights as the others' do
            total = total + 0.0 * logits.sum()
        if config.label_weight and share.labels:
            weight = config.label_weight * share.labels
            total = total + weight * label_loss(logits, labels, kind=self.kind, mask=mask)
        if target is not None and config.logit_weight and share.labels:
            theirs, weight = target.logits.float(), config.logit_weight * share.labels
            total = total + weight * logit_loss(logits, theirs, kind=self.kind, labels=labels, mask=mask)
        if target is not None and config.hidden_weight:
            their_states, weight = matched_states(target.states, subnet.layers), config.hidden_weight * share.tokens
            total = total + weight * hidden_loss(answer.states, their_states, mask)
        return total

    def _add_up(self, loss: Tensor) -> Tensor:
        """Adds the gradients of all processes up, and with them the losses and who wants to stop; the summed loss."""
        if self.processes.count == 1:
            return loss
        asked = torch.full((), float(self.around.should_stop()), device=loss.device)
        total, self._asked_to_stop = self.processes.add_up(self._trained, also=torch.stack([loss, asked])).unbind()
        return total

    def _should_stop(self, step: int) -> bool:
        """Whether somebody asked for it: the same answer in all processes, for it came with the gradients."""
        if self.processes.count == 1:
            return self.around.should_stop()
        if self._asked_to_stop.device.type == "cuda" and step % REPORT_EVERY:
            return False  # looking would wait for the device
        return bool(self._asked_to_stop > 0)

    def _save(self, state: TrainingState) -> None:
        if self.processes.is_main:
            folder = self.around.workspace.folder
            save_state(folder, state, network=self.model.network, optimizer=self.optimizer)

    def _targets(
        self, shared: SharedPass, inputs: dict[str, Tensor], *, known: dict[Subnet, Answer]
    ) -> dict[Subnet, Answer]:
        """The answers of the teachers that one pass learns from; those of the pass before are taken over or dropped."""
        if self.teacher is None:
            return {}
        answers = {}
        for teacher in dict.fromkeys(self._teacher_of(subnet) for subnet in shared.subnets):
            if teacher not in known:
                with torch.no_grad(), self.around.accelerator.autocast(), self.teacher.at(teacher):
                    keep_states = self.config.hidden_weight > 0
                    known |= run_pass(self.teacher, SharedPass((teacher,)), inputs, keep_states=keep_states)
            answers[teacher] = known[teacher]
        return answers

    def _teacher_of(self, subnet: Subnet) -> Subnet:
        """The teacher at full depth, at full width or at the student's."""
        if self.config.teacher_width == "full":
            return self.model.full
        widths = {(heads, neurons) for heads, neurons in subnet.widths().values()}
        assert len(widths) == 1, "a matched teacher is defined for uniform widths"
        heads, neurons = widths.pop()
        layers = self.model.shape.layers
        return Subnet(tuple(range(layers)), (heads,) * layers, (neurons,) * layers)

    def _choose(self, number: int) -> tuple[Subnet, ...]:
        """All sub-networks, or the largest, the smallest and random others."""
        count = self.config.sampled
        if count == 0 or count >= len(self.subnets):
            return self.subnets
        generator = torch.Generator().manual_seed(step_seed(self.around.seed, self.name + " sampling", number))
        middle = torch.randperm(len(self.subnets) - 2, generator=generator)[: count - 2] + 1
        return tuple(self.subnets[index] for index in sorted({0, len(self.subnets) - 1, *middle.tolist()}))

    def _batches(self, examples: TrainingRows, *, start: int, steps: int) -> Iterator[tuple[dict[str, Tensor], Share]]:
        """This process's part of the batches of steps ``start`` to ``steps``, epoch after epoch, on the device."""
        number, epoch = 0, 0
        while number < steps:
            order = examples.batches(batch_size=self.config.batch_size, seed=self.around.seed, epoch=epoch)
            for indices in order[: steps - number]:
                if number >= start:
                    batch, share = self.processes.part(examples.collate(indices))
                    yield self._on_device(examples.ready(batch)), share
                number += 1
            epoch += 1

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.around.accelerator.device
        if device.type != "cuda":
            return {name: tensor.to(device) for name, tensor in batch.items()}
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}

    def _learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up, then linear decay to 0."""
        warmup = math.ceil(self.config.warmup * steps)
        if step < warmup:
            return self.config.learning_rate * (step + 1) / warmup
        return self.config.learning_rate * (steps - step) / (steps - warmup)

    def _validate(self, state: TrainingState, validate: Callable[[], float]) -> None:
        score = validate()
        best = state.best_score is None or score > state.best_score
        if best:
            weights = self.model.network.state_dict()
            state.best_score, state.best = score, {name: tensor.clone() for name, tensor in weights.items()}
        self._log(state.step, {"validation": score})
        self.around.monitor.validated(self.name, step=state.step, score=score, best=best)
        self.model.network.train()

    def _report(self, step: int, steps: int, *, loss: float, rate: float, speed: float) -> None:
        values = {"loss": loss, "learning_rate": rate, "examples_per_second": speed}
        self._log(step, values)
        self.around.monitor.progress(Progress(self.name, step, steps, **values))

    def _log(self, step: int, values: dict[str, float]) -> None:
        """One record in the run's log, and in the trackers that the user asked for."""
        self.around.workspace.log({"phase": self.name, "step": step, **values})
        self.around.accelerator.log({f"{self.name}/{name}": value for name, value in values.items()}, step=step)


def grafting_steps(times: int, *, per_epoch: int, steps: int) -> frozenset[int]:
    """After which steps weights are grafted: so many times an epoch, evenly, until the last epoch begins."""
    every = per_epoch / times if times else math.inf
    return frozenset(round(number * every) for number in range(1, math.floor((steps - per_epoch) / every) + 1))
