"""The training loop: one phase, a few sub-networks a step, their gradients added up.

It does not know phases by name: which sub-networks, what teacher and what loss come from outside. What is random in
a step follows from the seed and the step's number alone, so that an interrupted run goes on bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from limbert.core.config import PhaseConfig, TaskType
from limbert.core.subnet import Subnet
from limbert.errors import DivergedError, TrainingInterrupted
from limbert.method.losses import hidden_loss, label_loss, logit_loss, matched_states
from limbert.model.elastic import ElasticModel
from limbert.model.layerwise import with_expanded_mask
from limbert.model.shared_forward import (
    SharedEmbedding,
    SharedForward,
    SubnetOutput,
    plan_shared_forwards,
    run_shared_forward,
    train_shared_forward,
)
from limbert.train.context import TrainDataset, TrainingContext, step_seed
from limbert.train.distributed import NO_LOSS_SCALE, DistributedContext, LossScale
from limbert.train.progress import TrainingProgress
from limbert.train.run_folder import TrainingState, restore_latest_state, save_state

LOGGING_STEPS = 10  # steps between reports; each waits for the device once


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
        task_type: TaskType,
        context: TrainingContext,
    ) -> None:
        self.name = name
        self.model = model
        self.teacher = teacher
        self.subnets = tuple(subnets)
        self.config = config
        self.task_type = task_type
        self.context = context
        self.distributed = DistributedContext.from_accelerator(context.accelerator)
        self._stop_requests = torch.zeros(())  # in how many processes, known since the last step
        self._trainable_parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trainable_parameters,
            lr=config.learning_rate,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def fit(
        self, train_dataset: TrainDataset, validate: Callable[[], float], *, graft: Callable[[], None] = lambda: None
    ) -> None:
        """Train the phase to its end, from its saved state if there is one; the best validated weights stay.

        Args:
            examples: labelled training rows, all of them in every process.
            validate: scores the model as it is, higher is better; the same in all processes.
            graft: changes the weights in place; called as often as the settings say.

        Raises:
            TrainingInterrupted: when asked to stop, after saving the state.
            StorageError: if a state cannot be saved; the one before stays.
            DivergedError: if the loss is no number any more.
        """
        config, around = self.config, self.context
        per_epoch = math.ceil(len(train_dataset) / config.batch_size)
        steps = math.ceil(config.epochs * per_epoch)
        steps = min(steps, config.max_steps or steps)
        validate_every = math.ceil(per_epoch / config.evaluations)
        grafted = grafting_steps(config.grafts, per_epoch=per_epoch, steps=steps)
        folder = around.run_dir.path
        state = restore_latest_state(folder, self.name, network=self.model.network, optimizer=self.optimizer)
        state = state or TrainingState(self.name)
        self.distributed.check_equal(state.step, description=f"a saved state of phase {self.name} after step")
        self.distributed.broadcast_weights(self.model.network)
        around.run_dir.truncate_log(self.name, state.step)
        around.callback.on_phase_begin(self.name, step=state.step, steps=steps)
        self.model.network.train()
        losses: list[Tensor] = []
        rows, reported, saved = 0, time.monotonic(), time.monotonic()
        for batch, share in self._batches(train_dataset, start=state.step, steps=steps):
            rate = self._learning_rate(state.step, steps)
            losses.append(self.step(batch, step_index=state.step, learning_rate=rate, loss_scale=share))
            rows += share.global_batch_size
            state.step += 1
            if state.step % LOGGING_STEPS == 0 or state.step == steps:
                loss, now = torch.stack(losses).mean().item(), time.monotonic()  # waits for the device
                if not math.isfinite(loss):
                    reason = f"loss is {loss} at step {state.step}; try a lower learning rate, and look at the labels"
                    raise DivergedError(reason)
                self._log_progress(state.step, steps, loss=loss, learning_rate=rate, throughput=rows / (now - reported))
                losses, rows, reported = [], 0, now
            pause = time.monotonic()
            if state.step in grafted:
                graft()
            if state.step % validate_every == 0 or state.step == steps:
                self._validate(state, validate)
            if self._should_stop(state.step) and state.step < steps:
                self.distributed.run_on_main(lambda: self._save(state))
                raise TrainingInterrupted(f"stopped in phase {self.name} after step {state.step} of {steps}")
            if time.monotonic() - saved > around.checkpoint_every and state.step < steps:
                self._save(state)
                saved = time.monotonic()
            reported += time.monotonic() - pause  # the rate is that of training alone
        if state.best_weights is not None:
            self.model.network.load_state_dict(state.best_weights)
        self.model.network.eval()

    def step(
        self, batch: dict[str, Tensor], *, step_index: int, learning_rate: float, loss_scale: LossScale = NO_LOSS_SCALE
    ) -> Tensor:
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
        own = f" in process {self.distributed.rank}" if self.distributed.rank else ""
        torch.manual_seed(step_seed(self.context.seed, self.name + own, step_index))  # dropout, wherever the run began
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        inputs = with_expanded_mask(
            inputs, self.model.network, self.model.family
        )  # else every pass waits for the device
        chosen = self._sample_subnets(step_index)
        total = torch.zeros((), device=self.model.network.device)
        targets: dict[Subnet, SubnetOutput] = {}
        with self.context.accelerator.autocast():
            start = SharedEmbedding.from_inputs(self.model, inputs)
        for shared in plan_shared_forwards(chosen):
            targets = self._teacher_outputs(shared, inputs, cached=targets)
            with self.model.at(shared.merged_subnet):  # backward stays inside: checkpointing runs the forward again
                total += self._forward_backward(
                    shared, inputs, batch, start=start, teacher_outputs=targets, loss_scale=loss_scale
                )
        start.backward()
        loss = self._all_reduce(total / len(chosen))
        self.context.accelerator.clip_grad_norm_(self.model.network.parameters(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _forward_backward(
        self,
        shared: SharedForward,
        inputs: dict[str, Tensor],
        batch: dict[str, Tensor],
        *,
        start: SharedEmbedding,
        teacher_outputs: dict[Subnet, SubnetOutput],
        loss_scale: LossScale,
    ) -> Tensor:
        """Adds the gradients of the sub-networks that one pass serves; the sum of their losses."""

        def loss(subnet: Subnet, answer: SubnetOutput) -> Tensor:
            weight = self.config.full_weight if subnet == self.model.full else 1.0
            target = teacher_outputs[self._teacher_subnet(subnet)] if teacher_outputs else None
            return weight * self._loss(subnet, answer, target, batch=batch, loss_scale=loss_scale)

        return train_shared_forward(
            self.model,
            shared,
            inputs,
            shared_embedding=start,
            loss_fn=loss,
            backward=self.context.accelerator.backward,
            autocast=self.context.accelerator.autocast,
        )

    def _loss(
        self,
        subnet: Subnet,
        outputs: SubnetOutput,
        teacher_outputs: SubnetOutput | None,
        *,
        batch: dict[str, Tensor],
        loss_scale: LossScale,
    ) -> Tensor:
        """This process's part of a loss: a mean over what it has, times its share of what that mean is over."""
        config, logits = self.config, outputs.logits.float()
        total = torch.zeros((), device=logits.device)
        labels, mask = batch["labels"], batch["attention_mask"]
        if (
            not loss_scale.labels
        ):  # the mean over none is no number; the pass reaches the same weights as the others' do
            total = total + 0.0 * logits.sum()
        if config.label_weight and loss_scale.labels:
            weight = config.label_weight * loss_scale.labels
            total = total + weight * label_loss(logits, labels, task_type=self.task_type, mask=mask)
        if teacher_outputs is not None and config.logit_weight and loss_scale.labels:
            theirs, weight = teacher_outputs.logits.float(), config.logit_weight * loss_scale.labels
            total = total + weight * logit_loss(logits, theirs, task_type=self.task_type, labels=labels, mask=mask)
        if teacher_outputs is not None and config.hidden_weight:
            their_states, weight = (
                matched_states(teacher_outputs.hidden_states, subnet.layers),
                config.hidden_weight * loss_scale.tokens,
            )
            total = total + weight * hidden_loss(outputs.hidden_states, their_states, mask)
        return total

    def _all_reduce(self, loss: Tensor) -> Tensor:
        """Adds the gradients of all processes up, and with them the losses and who wants to stop; the summed loss."""
        if self.distributed.world_size == 1:
            return loss
        asked = torch.full((), float(self.context.should_stop()), device=loss.device)
        total, self._stop_requests = self.distributed.all_reduce_gradients(
            self._trainable_parameters, extra=torch.stack([loss, asked])
        ).unbind()
        return total

    def _should_stop(self, step: int) -> bool:
        """Whether somebody asked for it: the same answer in all processes, for it came with the gradients."""
        if self.distributed.world_size == 1:
            return self.context.should_stop()
        if self._stop_requests.device.type == "cuda" and step % LOGGING_STEPS:
            return False  # looking would wait for the device
        return bool(self._stop_requests > 0)

    def _save(self, state: TrainingState) -> None:
        if self.distributed.is_main_process:
            folder = self.context.run_dir.path
            save_state(folder, state, network=self.model.network, optimizer=self.optimizer)

    def _teacher_outputs(
        self, shared: SharedForward, inputs: dict[str, Tensor], *, cached: dict[Subnet, SubnetOutput]
    ) -> dict[Subnet, SubnetOutput]:
        """The answers of the teachers that one pass learns from; those of the pass before are taken over or dropped."""
        if self.teacher is None:
            return {}
        answers = {}
        for teacher in dict.fromkeys(self._teacher_subnet(subnet) for subnet in shared.subnets):
            if teacher not in cached:
                with torch.no_grad(), self.context.accelerator.autocast(), self.teacher.at(teacher):
                    keep_states = self.config.hidden_weight > 0
                    cached |= run_shared_forward(
                        self.teacher, SharedForward((teacher,)), inputs, output_hidden_states=keep_states
                    )
            answers[teacher] = cached[teacher]
        return answers

    def _teacher_subnet(self, subnet: Subnet) -> Subnet:
        """The teacher at full depth, at full width or at the student's."""
        if self.config.teacher_width == "full":
            return self.model.full
        widths = {(heads, neurons) for heads, neurons in subnet.layer_widths().values()}
        assert len(widths) == 1, "a matched teacher is defined for uniform widths"
        heads, neurons = widths.pop()
        layers = self.model.shape.layers
        return Subnet(tuple(range(layers)), (heads,) * layers, (neurons,) * layers)

    def _sample_subnets(self, step_index: int) -> tuple[Subnet, ...]:
        """All sub-networks, or the largest, the smallest and random others."""
        count = self.config.sampled
        if count == 0 or count >= len(self.subnets):
            return self.subnets
        generator = torch.Generator().manual_seed(step_seed(self.context.seed, self.name + " sampling", step_index))
        middle = torch.randperm(len(self.subnets) - 2, generator=generator)[: count - 2] + 1
        return tuple(self.subnets[index] for index in sorted({0, len(self.subnets) - 1, *middle.tolist()}))

    def _batches(
        self, train_dataset: TrainDataset, *, start: int, steps: int
    ) -> Iterator[tuple[dict[str, Tensor], LossScale]]:
        """This process's part of the batches of steps ``start`` to ``steps``, epoch after epoch, on the device."""
        number, epoch = 0, 0
        while number < steps:
            order = train_dataset.batches(batch_size=self.config.batch_size, seed=self.context.seed, epoch=epoch)
            for indices in order[: steps - number]:
                if number >= start:
                    batch, share = self.distributed.shard_batch(train_dataset.collate(indices))
                    yield self._to_device(train_dataset.prepare_inputs(batch)), share
                number += 1
            epoch += 1

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.context.accelerator.device
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
            state.best_score, state.best_weights = score, {name: tensor.clone() for name, tensor in weights.items()}
        self._log(state.step, {"validation": score})
        self.context.callback.on_evaluate(self.name, step=state.step, score=score, is_best=best)
        self.model.network.train()

    def _log_progress(self, step: int, steps: int, *, loss: float, learning_rate: float, throughput: float) -> None:
        values = {"loss": loss, "learning_rate": learning_rate, "examples_per_second": throughput}
        self._log(step, values)
        self.context.callback.on_log(TrainingProgress(self.name, step, steps, **values))

    def _log(self, step: int, values: dict[str, float]) -> None:
        """One record in the run's log, and in the trackers that the user asked for."""
        self.context.run_dir.append_log({"phase": self.name, "step": step, **values})
        self.context.accelerator.log({f"{self.name}/{name}": value for name, value in values.items()}, step=step)


def grafting_steps(grafts_per_epoch: int, *, per_epoch: int, steps: int) -> frozenset[int]:
    """After which steps weights are grafted: so many times an epoch, evenly, until the last epoch begins."""
    every = per_epoch / grafts_per_epoch if grafts_per_epoch else math.inf
    return frozenset(round(number * every) for number in range(1, math.floor((steps - per_epoch) / every) + 1))
