"""ElasticTrainer: `transformers.Trainer` for several sub-networks of one elastic model in every step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel, default_data_collator
from transformers.trainer_utils import TrainOutput

from limbert.core.subnet import Subnet
from limbert.data.tokenize import evaluation_batches
from limbert.errors import ConfigError, TrainingInterrupted, explain_out_of_memory
from limbert.method.importance import WeightedMicroBatch
from limbert.method.losses import hidden_loss, logit_loss, matched_states
from limbert.model.elastic import ElasticModel
from limbert.model.layerwise import with_expanded_mask
from limbert.model.outputs import label_inputs
from limbert.model.shared_forward import (
    SharedEmbedding,
    SharedForward,
    SubnetOutput,
    plan_shared_forwards,
    run_shared_forward,
    train_shared_forward,
)
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.callbacks import GracefulStop, Grafting, LogLastStep, StopOnDivergence, stop_on_signals
from limbert.train.checkpoints import last_checkpoint
from limbert.train.data import (
    LABEL_NAMES,
    Batch,
    LossScale,
    StepBatches,
    index_dataset,
    pop_labels,
    resolve_class_weights,
    shard_batch,
)
from limbert.train.distributed import all_reduce_gradients, broadcast_weights, check_equal, collective_errors
from limbert.train.subnet_trainer import (
    EvaluateSubnets,
    MetricFunction,
    SubnetTrainer,
    default_metrics,
    step_seed,
    task_type_of,
)

MAX_IMPORTANCE_EXAMPLES = 10_000


class ElasticTrainer(SubnetTrainer):
    """Trains sub-networks of an elastic model together, on labels and towards a teacher.

    Used as `transformers.Trainer`. Each step chooses sub-networks, runs them on the same batch with shared layer runs,
    adds up their gradients, and sums these once over all processes. ``evaluate()`` reports every sub-network
    (``eval_0.5x0.75/accuracy``) and the means (``eval_accuracy``); ``predict()`` returns a tuple of the logits of each.
    Override `subnet_loss` for another loss. Everything random in a step follows from seed, phase and step number, so
    that a resumed run ends with the same weights.

    Args:
        model: trained in place; a stock network becomes elastic with the default space.
        args: settings.
        teacher: its weights stay; None trains on labels only.
        subnets: by name, largest first; default: all of the model's space.
        evaluate_subnets: measures sub-networks on the validation split instead of the stock evaluation loop; called
            with ``(model, subnets)`` in every process for some of the sub-networks.
        compute_metrics: called once for each sub-network; default for tasks with one output per text:
            the task's metrics.
        train_dataset: a `datasets.Dataset`, tokenised or with text columns, a `DatasetDict` with ``train`` and
            ``validation``, or a torch dataset.
        eval_dataset: the same, or several by name.
        processing_class: the tokenizer.
        data_collator: makes batches; default: pads.
        options: ``callbacks``, ``optimizers`` and others of `transformers.Trainer`.

    Raises:
        ConfigError: for an option that cannot be followed.
        UnsupportedModelError: for a family that is not supported.
    """

    args: ElasticTrainingArguments

    def __init__(
        self,
        model: ElasticModel | PreTrainedModel,
        args: ElasticTrainingArguments,
        *,
        teacher: ElasticModel | None = None,
        subnets: Mapping[str, Subnet] | None = None,
        evaluate_subnets: EvaluateSubnets | None = None,
        compute_metrics: MetricFunction | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: Any = None,
        **options: Any,
    ) -> None:
        if options.get("compute_loss_func") is not None:
            raise ConfigError("compute_loss_func is given; override ElasticTrainer.subnet_loss instead")
        self.elastic = model if isinstance(model, ElasticModel) else ElasticModel(model)
        self.teacher, self.evaluate_subnets = teacher, evaluate_subnets
        self.subnets = dict(subnets or self.elastic.subnets())
        network = self.elastic.network
        self.task_type = args.task_type or task_type_of(network)
        self.metric_function = compute_metrics or default_metrics(network, self.task_type)
        if isinstance(train_dataset, dict):
            eval_dataset = train_dataset.get("validation") if eval_dataset is None else eval_dataset
            train_dataset = train_dataset["train"]
        collator = data_collator or default_collator(processing_class)
        self.index = partial(index_dataset, network=network, tokenizer=processing_class, collator=collator, args=args)
        super().__init__(
            network,
            args,
            compute_metrics=self._metrics_of_subnets if self.metric_function else None,
            train_dataset=self.index(train_dataset),
            eval_dataset=self.index(eval_dataset),
            processing_class=processing_class,
            data_collator=collator,
            **options,
        )
        if teacher is not None:
            teacher.network.to(args.device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.stop = GracefulStop()
        for callback in (LogLastStep(), StopOnDivergence(), Grafting(self), self.stop):
            self.add_callback(callback)
        self._trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._part = 0  # of the running step, under gradient accumulation

    # -- one step

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Add up the gradients of the chosen sub-networks for one batch; the mean loss of a sub-network, a scalar."""
        self._seed_step()
        model.train()
        scale: LossScale = inputs.pop("loss_scale")
        self.examples_seen += scale.batch_size
        batch = self._prepare_inputs(inputs)
        inputs = {name: tensor for name, tensor in batch.items() if name not in LABEL_NAMES}
        network, family = self.elastic.network, self.elastic.family
        inputs = with_expanded_mask(inputs, network, family)  # else passes wait for the device
        batch["labels"] = pop_labels(batch)
        if batch["labels"] is None and self.teacher is None:
            raise ConfigError("the training data has no labels and there is no teacher; add a column labels")
        subnets = self.choose_subnets(self.state.global_step)
        total = torch.zeros((), device=self.args.device)
        targets: dict[Subnet, SubnetOutput] = {}
        with self.accelerator.autocast():
            embedding = SharedEmbedding.from_inputs(self.elastic, inputs)

        def loss_fn(subnet: Subnet, outputs: SubnetOutput) -> Tensor:
            weight = self.args.full_weight if subnet == self.elastic.full else 1.0
            target = targets[self._teacher_subnet(subnet)] if targets else None
            loss = self.subnet_loss(subnet, outputs, target, batch, scale)
            return weight / self.current_gradient_accumulation_steps * loss

        for shared in plan_shared_forwards(subnets):
            targets = self._teacher_outputs(shared, inputs, cached=targets)
            with self.elastic.at(shared.merged_subnet):  # backward inside: checkpointing runs the forward again
                total += train_shared_forward(
                    self.elastic,
                    shared,
                    inputs,
                    shared_embedding=embedding,
                    loss_fn=loss_fn,
                    backward=self.accelerator.backward,
                    autocast=self.accelerator.autocast,
                )
        embedding.backward()
        if self.accelerator.sync_gradients and self.args.world_size > 1:
            flags = self.stop.stop_and_save_flags(self.args)
            self.stop.sum_of_flags = all_reduce_gradients(self._trainable, extra=flags)
        return total / len(subnets) * self.args.world_size  # the stock Trainer logs the mean over processes

    def subnet_loss(
        self,
        subnet: Subnet,
        outputs: SubnetOutput,
        teacher_outputs: SubnetOutput | None,
        batch: dict[str, Any],
        loss_scale: LossScale,
    ) -> Tensor:
        """The loss of one sub-network, a scalar; override it for your own.

        Args:
            subnet: the sub-network.
            outputs: ``logits``, and ``hidden_states`` of ``(batch, tokens, hidden)``: embedding output and every layer.
            teacher_outputs: the teacher's for the same batch; None without a teacher.
            batch: inputs, ``attention_mask`` and ``labels``; no labels are None.
            loss_scale: multiply mean losses by its ``labels`` or ``tokens``, so that processes sum to the whole batch.
        """
        args, labels, mask, logits = self.args, batch["labels"], batch["attention_mask"], outputs.logits.float()
        scale = loss_scale.tokens if labels is None else loss_scale.labels
        total = torch.zeros((), device=logits.device)
        if not scale:  # the mean over no label is NaN; the gradients reach the same weights
            total = total + 0.0 * logits.sum()
        label_weight = float(teacher_outputs is None) if args.label_weight is None else args.label_weight
        if label_weight and scale and labels is not None:
            total = total + label_weight * scale * self.label_loss(logits, labels, mask)
        if teacher_outputs is not None and args.logit_weight and scale:
            target = teacher_outputs.logits.float()
            distance = logit_loss(logits, target, task_type=self.task_type, labels=labels, mask=mask)
            total = total + args.logit_weight * scale * distance
        if teacher_outputs is not None and args.hidden_weight:
            target_states = matched_states(teacher_outputs.hidden_states, subnet.layers)
            weight = args.hidden_weight * loss_scale.tokens
            total = total + weight * hidden_loss(outputs.hidden_states, target_states, mask)
        return total

    def choose_subnets(self, step: int) -> tuple[Subnet, ...]:
        """The sub-networks of a step: all, or the largest, the smallest and random others."""
        subnets, count = tuple(self.subnets.values()), self.args.sampled_subnets
        if count == 0 or count >= len(subnets):
            return subnets
        generator = torch.Generator().manual_seed(step_seed(self.args.seed, f"{self.args.phase} sampling", step))
        middle = torch.randperm(len(subnets) - 2, generator=generator)[: count - 2] + 1
        return tuple(subnets[index] for index in sorted({0, len(subnets) - 1, *middle.tolist()}))

    def _seed_step(self) -> None:
        """Seed dropout from the step alone, so that resuming needs no generator state."""
        name = self.args.phase
        name += f" in process {self.args.process_index}" if self.args.process_index else ""
        name += f" part {self._part}" if self._part else ""
        torch.manual_seed(step_seed(self.args.seed, name, self.state.global_step))
        self._part = 0 if self.accelerator.sync_gradients else self._part + 1

    def _teacher_outputs(
        self, shared: SharedForward, inputs: Batch, *, cached: dict[Subnet, SubnetOutput]
    ) -> dict[Subnet, SubnetOutput]:
        """The teacher's outputs that a group of sub-networks needs; those of the group before are reused or freed."""
        if self.teacher is None:
            return {}
        outputs, keep_states = {}, self.args.hidden_weight > 0
        for subnet in map(self._teacher_subnet, shared.subnets):
            if subnet not in cached:
                alone = SharedForward((subnet,))
                with torch.no_grad(), self.accelerator.autocast(), self.teacher.at(subnet):
                    cached |= run_shared_forward(self.teacher, alone, inputs, output_hidden_states=keep_states)
            outputs[subnet] = cached[subnet]
        return outputs

    def _teacher_subnet(self, subnet: Subnet) -> Subnet:
        """The teacher at full depth, at full width or at the student's."""
        if self.args.teacher_width == "full":
            return self.elastic.full
        widths = {*subnet.layer_widths().values()}
        if len(widths) > 1:
            raise ConfigError("teacher_width is 'matched'; it must be 'full' where layers differ in width")
        heads, neurons = widths.pop()
        layers = self.elastic.shape.layers
        return Subnet(tuple(range(layers)), (heads,) * layers, (neurons,) * layers)

    # -- data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The same batches in every process, of which each collates its own examples."""
        args, dataset = self.args, self.train_dataset
        if not hasattr(dataset, "collate"):
            raise ConfigError("training needs a train_dataset")
        num_labels = int(self.elastic.network.config.num_labels or 0)
        labels = getattr(dataset, "labels", None) if args.class_weights is not None else None
        self._class_weights = resolve_class_weights(
            args.class_weights, labels, num_labels=num_labels, task_type=self.task_type
        )
        sampler = StepBatches(
            dataset,
            batch_size=self._train_batch_size * args.world_size,
            parts=args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

        def collate(indices: Sequence[int]) -> dict[str, Any]:
            part, scale = shard_batch(
                dataset.collate(indices),
                rank=args.process_index,
                world_size=args.world_size,
                class_weights=self._class_weights,
            )
            return dataset.prepare_inputs(part) | {"loss_scale": scale}

        loader = self.loader(dataset, batch_sampler=sampler, collate_fn=collate)
        alone = {"num_processes": 1, "process_index": 0}
        return prepare_data_loader(loader, device=args.device, put_on_device=True, non_blocking=True, **alone)

    def importance_batches(self) -> Iterator[Iterable[WeightedMicroBatch]]:
        """Labelled batches of the validation data for scoring heads and neurons.

        Each comes in pieces no larger than what a process trains on, on the device, as stock networks take them.
        """
        dataset, count = self.validation_dataset(), self.args.world_size

        def stock_inputs(part: Batch) -> Batch:
            rows = dataset.prepare_inputs({name: tensor.contiguous() for name, tensor in part.items()})
            batch: Batch = self._prepare_inputs(rows)
            labels = pop_labels(batch)
            return batch if labels is None else batch | label_inputs(labels, task_type=self.task_type)

        lengths = dataset.lengths[:MAX_IMPORTANCE_EXAMPLES]
        for indices in evaluation_batches(lengths, batch_size=self._train_batch_size * count):
            batch = dataset.collate(indices)
            parts = (shard_batch(batch, rank=rank, world_size=count) for rank in range(count))
            yield ((stock_inputs(part), scale.labels) for part, scale in parts if scale.labels)

    # -- a whole training

    def train(self, resume_from_checkpoint: Any = None, **options: Any) -> TrainOutput:  # type: ignore[override]
        """Train, from a checkpoint if one is named or, with True, the newest whole one of the output folder if any.

        Raises:
            TrainingInterrupted: after SIGINT or SIGTERM; a checkpoint of the last step is saved.
            DivergedError: if the loss is NaN or infinite.
            StorageError: if a checkpoint cannot be written; the earlier one stays.
            ProcessError: if another process has ended.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(str(self.args.output_dir))
        path = str(resume_from_checkpoint) if resume_from_checkpoint else None
        check_equal(path and Path(path).name, description=f"in {self.args.output_dir} as the newest checkpoint")
        memory_errors = explain_out_of_memory(self.args.per_device_train_batch_size)
        broadcast_weights(self.model)
        with stop_on_signals(), collective_errors(), memory_errors:
            output = super().train(path, **options)
            if self.stop.requested and self.state.global_step < self.state.max_steps:
                step, steps = self.state.global_step, self.state.max_steps
                raise TrainingInterrupted(f"Interrupted in phase {self.args.phase} at step {step} of {steps}.")
        return output


def default_collator(tokenizer: Any) -> Any:
    """Pads with the tokenizer, if there is one."""
    return default_data_collator if tokenizer is None else DataCollatorWithPadding(tokenizer)
