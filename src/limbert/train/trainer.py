"""ElasticTrainer: `transformers.Trainer` for several sub-networks of one elastic model in every step."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, Trainer
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SchedulerType, TrainOutput, rotate_checkpoints

from limbert.core.config import TaskType
from limbert.core.subnet import Subnet
from limbert.core.task_types import IGNORE_INDEX, TASK_TYPE_SPECS
from limbert.data.metrics import compute_metrics as compute_task_metrics
from limbert.data.tasks import Task, custom_task
from limbert.data.tokenize import evaluation_batches
from limbert.errors import ConfigError, TrainingInterrupted
from limbert.evaluation.evaluate import count_parameters
from limbert.evaluation.hardware import describe_this_machine
from limbert.evaluation.results import SubnetResult
from limbert.method.importance import WeightedMicroBatch
from limbert.method.losses import hidden_loss, label_loss, logit_loss, matched_states
from limbert.model.checkpoint import RECORD_FILENAME
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
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
from limbert.model.width_gates import GATES_FILENAME
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.callbacks import BroadcastWeights, GracefulStop, Grafting, LogLastStep, StopOnDivergence
from limbert.train.checkpoints import STATE_NAME, last_checkpoint, load_optimizer, save_optimizer, write_into
from limbert.train.data import (
    Batch,
    IndexDataset,
    LossScale,
    StepBatches,
    class_weights_for,
    collate_shard,
    pop_labels,
    shard_batch,
    tokenized,
)
from limbert.train.distributed import all_gather_object, all_reduce_gradients, check_equal

logger = logging.getLogger(__name__)

SubnetMetrics = dict[str, dict[str, float]]  # metrics by name, by the name of the sub-network
EvaluateSubnets = Callable[[ElasticModel, Mapping[str, Subnet]], SubnetMetrics]


class UnwrappedTrainer(Trainer):
    """A Trainer that leaves the model as it is: no DistributedDataParallel, no autocast around ``forward``.

    The linear schedule starts above 0: with ``w`` warm-up steps, step ``s`` (from 0) has ``(s + 1) / w`` of the learning
    rate; weight decay applies to all weights.
    """

    args: ElasticTrainingArguments
    model: Any  # transformers' types allow None and dictionaries everywhere
    train_dataset: Any
    eval_dataset: Any

    def __init__(self, model: torch.nn.Module, args: Any, **options: Any) -> None:
        use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        if args.device.type == "cuda" and args.n_gpu > 1:
            logger.warning("training on one of %d GPUs; start with torchrun to use all of them", args.n_gpu)
            args._n_gpu = 1  # else the stock Trainer splits every batch over threads
        super().__init__(model, args, **options)
        if use_cache is not None:
            model.config.use_cache = use_cache  # type: ignore[union-attr]  # set by the stock Trainer, and saved with every checkpoint
        if args.disable_tqdm:
            self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # True counts the labels of every step in all processes
        self.examples_seen, self.speed_since = 0, time.monotonic()  # since the last log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.monotonic()
            logs["examples_per_second"] = self.examples_seen / max(now - self.speed_since, 1e-9)
            self.examples_seen, self.speed_since = 0, now
        super().log(logs, start_time)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = lambda model, **_: model

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None and self.args.lr_scheduler_type == SchedulerType.LINEAR:
            warmup = self.args.get_warmup_steps(num_training_steps)
            factor = partial(linear_schedule, warmup_steps=warmup, max_steps=num_training_steps)
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the stock estimate assumes one pass of the full network


def linear_schedule(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """Fraction of the learning rate at a step from 0: linear warm-up, then linear decay to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


class ElasticTrainer(UnwrappedTrainer):
    """Trains sub-networks of an elastic model together, on labels and towards a teacher.

    Used as `transformers.Trainer`. Each step chooses sub-networks, runs them on the same batch with shared layer runs, adds
    up their gradients, and sums these once over all processes. ``evaluate()`` reports every sub-network
    (``eval_0.5x0.75/accuracy``) and the mean (``eval_accuracy``); ``predict()`` returns a tuple with the logits of each.
    Override `subnet_loss` for another loss. Everything random in a step follows from seed, phase and step number, so
    that a resumed run ends with the same weights.

    Args:
        model: trained in place; a stock network becomes elastic with the default space.
        args: settings.
        teacher: its weights stay; None trains on labels only.
        subnets: by name, largest first; default: all of the model's space.
        evaluate_subnets: measures sub-networks on the validation split instead of the stock evaluation loop; called
            with ``(model, subnets)`` in every process for some of the sub-networks; each with a ``loss``, or without.
        compute_metrics: called once for each sub-network; default for classification and regression: the task's.
        options: of `transformers.Trainer`: ``train_dataset``, ``eval_dataset`` (`datasets.Dataset`, tokenised or with
            text columns, a `DatasetDict` with ``train`` and ``validation``, or a torch dataset), ``processing_class``, ``data_collator``, ``callbacks``, ``optimizers``.

    Raises:
        ConfigError: for an option that cannot be followed.
        UnsupportedModelError: for a family that is not supported.
    """

    def __init__(
        self,
        model: ElasticModel | PreTrainedModel,
        args: ElasticTrainingArguments,
        *,
        teacher: ElasticModel | None = None,
        subnets: Mapping[str, Subnet] | None = None,
        evaluate_subnets: EvaluateSubnets | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **options: Any,
    ) -> None:
        if options.get("compute_loss_func") is not None:
            raise ConfigError("compute_loss_func is given; override ElasticTrainer.subnet_loss instead")
        self.elastic = model if isinstance(model, ElasticModel) else ElasticModel(model)
        self.teacher = teacher
        self.subnets = dict(subnets or self.elastic.subnets())
        self.evaluate_subnets = evaluate_subnets
        network = self.elastic.network
        self.task_type: TaskType = args.task_type or task_type_of(network)
        self._user_metrics = compute_metrics or _default_metrics(network, self.task_type)
        if isinstance(data := options.get("train_dataset"), dict):
            options["train_dataset"] = data["train"]
            if options.get("eval_dataset") is None:
                options["eval_dataset"] = data.get("validation")
        for name in ("train_dataset", "eval_dataset"):
            options[name] = _map_datasets(partial(self._tokenized, args, options), options.get(name))
        super().__init__(network, args, compute_metrics=self._user_metrics and self._metrics_of_subnets, **options)
        if teacher is not None:
            teacher.network.to(args.device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.stop = GracefulStop()
        for callback in (BroadcastWeights(), LogLastStep(), StopOnDivergence(), Grafting(self), self.stop):
            self.add_callback(callback)
        self._trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._class_weights: Tensor | None = None
        self._part = 0  # of the running step, under gradient accumulation
        self._eval_order: np.ndarray | None = None
        self._last_metrics: SubnetMetrics = {}

    # -- one step

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Add up the gradients of the chosen sub-networks for one batch; the mean loss of a sub-network, a scalar.

        Args:
            model: the network.
            inputs: this process's rows, with ``loss_scale``.
            num_items_in_batch: not used.
        """
        self._seed_step()
        model.train()
        scale: LossScale = inputs.pop("loss_scale")
        self.examples_seen += scale.batch_size
        batch = self._prepare_inputs(inputs)
        inputs = {name: tensor for name, tensor in batch.items() if name not in _LABEL_NAMES}
        inputs = with_expanded_mask(
            inputs, self.elastic.network, self.elastic.family
        )  # else passes wait for the device
        subnets = self.choose_subnets(self.state.global_step)
        total = torch.zeros((), device=self.args.device)
        targets: dict[Subnet, SubnetOutput] = {}
        batch["labels"] = pop_labels(batch)
        if batch["labels"] is None and self.teacher is None:
            raise ConfigError("the training data has no labels and there is no teacher; add a column labels")
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
        if self.accelerator.sync_gradients:
            self._all_reduce()
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
        label_weight = float(teacher_outputs is None) if args.label_weight is None else args.label_weight
        total = torch.zeros((), device=logits.device)
        if not loss_scale.labels:  # the mean over no label is no number; the gradients reach the same weights
            total = total + 0.0 * logits.sum()
        if label_weight and loss_scale.labels:
            total = total + label_weight * loss_scale.labels * self.label_loss(logits, labels, mask)
        if teacher_outputs is not None and args.logit_weight and (loss_scale.labels or labels is None):
            weight = args.logit_weight * (loss_scale.tokens if labels is None else loss_scale.labels)
            target = teacher_outputs.logits.float()
            distance = logit_loss(logits, target, task_type=self.task_type, labels=labels, mask=mask)
            total = total + weight * distance
        if teacher_outputs is not None and args.hidden_weight:
            target_states = matched_states(teacher_outputs.hidden_states, subnet.layers)
            weight = args.hidden_weight * loss_scale.tokens
            total = total + weight * hidden_loss(outputs.hidden_states, target_states, mask)
        return total

    def label_loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """The supervised loss, a scalar, with class weights and label smoothing where they are set.

        Args:
            logits: ``(batch, outputs)`` or ``(batch, tokens, outputs)``.
            labels: as `limbert.method.losses.label_loss` takes them.
            mask: ``(batch, tokens)``, 1 for tokens and 0 for padding.
        """
        smoothing = self.args.label_smoothing_factor
        if self._class_weights is None and not smoothing:
            return label_loss(logits, labels, task_type=self.task_type, mask=mask)
        weights = None if self._class_weights is None else self._class_weights.to(logits.device)
        if self.task_type == "multi-label":
            return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
        if self.task_type == "token-classification":
            logits, labels = logits.flatten(0, 1), labels.flatten()
        if labels.is_floating_point():
            return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, ignore_index=IGNORE_INDEX)

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
        if self.args.process_index:
            name += f" in process {self.args.process_index}"
        if self._part:
            name += f" part {self._part}"
        torch.manual_seed(step_seed(self.args.seed, name, self.state.global_step))
        self._part = 0 if self.accelerator.sync_gradients else self._part + 1

    def _teacher_outputs(
        self, shared: SharedForward, inputs: Batch, *, cached: dict[Subnet, SubnetOutput]
    ) -> dict[Subnet, SubnetOutput]:
        """The teacher's outputs that a group of sub-networks needs; those of the group before are reused or freed."""
        if self.teacher is None:
            return {}
        outputs = {}
        for subnet in dict.fromkeys(self._teacher_subnet(subnet) for subnet in shared.subnets):
            if subnet not in cached:
                keep_states = self.args.hidden_weight > 0
                with torch.no_grad(), self.accelerator.autocast(), self.teacher.at(subnet):
                    cached |= run_shared_forward(
                        self.teacher, SharedForward((subnet,)), inputs, output_hidden_states=keep_states
                    )
            outputs[subnet] = cached[subnet]
        return outputs

    def _teacher_subnet(self, subnet: Subnet) -> Subnet:
        """The teacher at full depth, at full width or at the student's."""
        if self.args.teacher_width == "full":
            return self.elastic.full
        widths = {*subnet.layer_widths().values()}
        if len(widths) > 1:
            raise ConfigError(
                "teacher_width is 'matched'; it must be 'full' for sub-networks whose layers differ in width"
            )
        heads, neurons = widths.pop()
        layers = self.elastic.shape.layers
        return Subnet(tuple(range(layers)), (heads,) * layers, (neurons,) * layers)

    def _all_reduce(self) -> None:
        """Sum gradients and the processes' wishes to stop or save, in one exchange."""
        if self.args.world_size > 1:
            votes = self.stop.votes(self.args, self.args.device)
            self.stop.set_votes(all_reduce_gradients(self._trainable, extra=votes))

    # -- data

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        args = self.args
        return math.ceil(
            len(self.train_dataset) / (self._train_batch_size * args.world_size * args.gradient_accumulation_steps)
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.train_dataset is None:
            raise ConfigError("training needs a train_dataset")
        args, dataset = self.args, self._indexed(self.train_dataset)
        num_labels = self.elastic.network.config.num_labels or 0
        self._class_weights = class_weights_for(args.class_weights, dataset, num_labels=num_labels)
        sampler = StepBatches(
            dataset,
            batch_size=self._train_batch_size * args.world_size,
            parts=args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        collate = partial(
            collate_shard,
            dataset=dataset,
            rank=args.process_index,
            world_size=args.world_size,
            class_weights=self._class_weights,
        )
        loader = self._loader(dataset, collate, batch_sampler=sampler)
        # Prepared as for one process: every process knows the whole batch and takes its own rows.
        return prepare_data_loader(
            loader, device=args.device, num_processes=1, process_index=0, put_on_device=True, non_blocking=True
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        if chosen is None:
            raise ConfigError("evaluation needs an eval_dataset")
        dataset = self._indexed(_map_datasets(partial(self._tokenized, self.args, vars(self)), chosen))
        self._eval_order = np.argsort(-dataset.lengths, kind="stable")  # little padding; restored before metrics
        batches = self._loader(
            dataset, self._prepared(dataset), batch_size=self.args.eval_batch_size, sampler=self._eval_order.tolist()
        )
        return self.accelerator.prepare(batches)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        self._eval_order = None  # predict() returns the order of the dataset
        dataset = self._indexed(_map_datasets(partial(self._tokenized, self.args, vars(self)), test_dataset))
        return self.accelerator.prepare(
            self._loader(dataset, self._prepared(dataset), batch_size=self.args.eval_batch_size)
        )

    def importance_batches(self) -> Iterator[Iterable[WeightedMicroBatch]]:
        """Labelled batches of the validation split (without one, of the training data) for scoring heads and neurons.

        Each comes in pieces no larger than what a process trains on, on the device, as stock networks take them.
        """
        dataset = self.indexed("train" if self.eval_dataset is None else "eval")
        count = self.args.world_size
        for indices in evaluation_batches(dataset.lengths[:MAX_IMPORTANCE], batch_size=self._train_batch_size * count):
            batch = dataset.collate(indices)
            parts = (shard_batch(batch, rank=rank, world_size=count) for rank in range(count))
            yield ((self._stock_inputs(dataset, part), scale.labels) for part, scale in parts if scale.labels)

    def _stock_inputs(self, dataset: IndexDataset, part: Batch) -> Batch:
        rows = dataset.prepare_inputs({name: tensor.contiguous() for name, tensor in part.items()})
        batch: Batch = self._prepare_inputs(rows)
        labels = pop_labels(batch)
        return batch if labels is None else batch | label_inputs(labels, task_type=self.task_type)

    def indexed(self, part: Literal["train", "eval"]) -> IndexDataset:
        """The training or evaluation data as it is batched."""
        dataset = self.train_dataset if part == "train" else self.eval_dataset
        return self._indexed(next(iter(dataset.values())) if isinstance(dataset, dict) else dataset)

    def _tokenized(self, args: ElasticTrainingArguments, options: Mapping[str, Any], dataset: Any) -> Any:
        label2id: Any = self.elastic.network.config.label2id or {}
        return tokenized(
            dataset,
            options.get("processing_class"),
            max_length=min(args.max_length, self.elastic.max_input_length),
            text_columns=args.text_columns,
            label2id=label2id,
        )

    def _indexed(self, dataset: Any) -> IndexDataset:
        self._set_signature_columns_if_needed()
        columns = [*(self._signature_columns or ()), "labels"] if self.args.remove_unused_columns else None
        return IndexDataset(dataset, collator=self.data_collator, columns=columns)

    def _prepared(self, dataset: IndexDataset) -> Callable[[Sequence[int]], Batch]:
        return lambda indices: dataset.prepare_inputs(dataset.collate(indices))

    def _loader(self, dataset: IndexDataset, collate: Any, **options: Any) -> DataLoader[Any]:
        args = self.args
        return DataLoader(
            dataset,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            **options,
        )

    # -- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of every sub-network, ``eval_0.5x0.75/accuracy``, and their means, ``eval_accuracy``."""
        started = time.monotonic()
        if self.evaluate_subnets is None or eval_dataset is not None:
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        else:
            measured = self.evaluate_subnets(self.elastic, subnets_of_rank(self.subnets, self.args))
            found = {name: values for part in all_gather_object(measured) for name, values in part.items()}
            metrics = {f"{metric_key_prefix}_{key}": value for key, value in self._with_means(found).items()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.speed_since += time.monotonic() - started  # the speed in the log is that of training alone
        return metrics

    def prediction_step(  # type: ignore[override]  # the stock loop takes nested logits, its type says one tensor
        self, model: torch.nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, tuple[Tensor, ...] | None, Tensor | None]:
        batch = self._prepare_inputs(inputs)
        labels = pop_labels(batch)
        outputs: dict[Subnet, SubnetOutput] = {}
        with torch.no_grad(), self.accelerator.autocast():
            for shared in plan_shared_forwards(self.subnets.values()):
                with self.elastic.at(shared.merged_subnet):
                    outputs |= run_shared_forward(self.elastic, shared, batch)
        logits = tuple(outputs[subnet].logits.float() for subnet in self.subnets.values())
        loss = None
        if labels is not None:
            mask = batch.get("attention_mask")
            loss = torch.stack([self.label_loss(values, labels, mask) for values in logits]).mean()
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def _metrics_of_subnets(self, prediction: EvalPrediction) -> dict[str, float]:
        assert self._user_metrics is not None
        predictions: Any = prediction.predictions  # a tuple of ``(examples, outputs)``
        labels: Any = prediction.label_ids
        if self._eval_order is not None and len(labels) == len(self._eval_order):
            back = np.argsort(self._eval_order)
            predictions, labels = tuple(logits[back] for logits in predictions), labels[back]
        found = {
            name: self._user_metrics(EvalPrediction(predictions=logits, label_ids=labels))
            for name, logits in zip(self.subnets, predictions, strict=True)
        }
        return self._with_means(found)

    def _with_means(self, found: SubnetMetrics) -> dict[str, float]:
        self._last_metrics = found = {name: found[name] for name in self.subnets}
        means = {key: sum(values[key] for values in found.values()) / len(found) for key in next(iter(found.values()))}
        return means | {f"{name}/{key}": value for name, values in found.items() for key, value in values.items()}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether to save; of equal metrics the one with the lower validation loss is best, else the later."""
        save_asked, best, step = self.control.should_save, self.state.best_metric, self.state.best_global_step
        is_best = super()._determine_best_metric(metrics, trial)
        name = self.args.metric_for_best_model
        if name is not None and not is_best and best is not None:
            value = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
            earlier = [row["eval_loss"] for row in self.state.log_history if row["step"] == step and "eval_loss" in row]
            if value == best and (not earlier or metrics.get("eval_loss", math.inf) <= earlier[0]):
                self.state.best_global_step, is_best = self.state.global_step, True
        return is_best or save_asked  # save_strategy="best" saves nothing else in a step with an evaluation

    # -- training, logs and checkpoints

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> TrainOutput:
        """Train, from a checkpoint if one is named or, with True, the newest whole one of the output folder if any.

        Raises:
            TrainingInterrupted: after SIGINT or SIGTERM; a checkpoint of the last step is saved.
            DivergedError: if the loss is no number.
            StorageError: if a checkpoint cannot be written; the earlier one stays.
            ProcessError: if another process has ended.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.path)
        name = None if resume_from_checkpoint is None else Path(resume_from_checkpoint).name
        check_equal(name, description=f"in {self.args.output_dir} as the newest checkpoint")
        with self.stop.handling_signals():
            checkpoint = None if name is None else str(resume_from_checkpoint)
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
        if self.stop.requested and self.state.global_step < self.state.max_steps:
            raise TrainingInterrupted(
                f"Interrupted in phase {self.args.phase} at step {self.state.global_step} of {self.state.max_steps}."
            )
        return output

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write an elastic checkpoint into a folder, beside what else is there."""
        if self.args.should_save:
            if self._last_metrics:  # the model card shows them
                self.elastic.record |= result_record(self.subnet_results(), device=self.args.device.type)
            write_into(output_dir or self.args.path, self._save_elastic)

    def _save_elastic(self, folder: Path, add_files: Callable[[Path], None] = lambda folder: None) -> None:
        self.elastic.save_pretrained(folder, tokenizer=self.processing_class, add_files=add_files)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        started, state, root = time.monotonic(), self.state, self.args.path
        folder = root / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.best_global_step:
            state.best_model_checkpoint = str(root / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
        if self.args.should_save:
            callbacks = [*self.callback_handler.callbacks, self.control]
            exportable: list[Any] = [callback for callback in callbacks if isinstance(callback, ExportableState)]
            state.stateful_callbacks = TrainerState(stateful_callbacks=exportable).stateful_callbacks
            self._save_elastic(folder, self._add_training_state)
            rotate_checkpoints(str(root), self.args.save_total_limit, state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()  # others may load the best one next
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        self.speed_since += time.monotonic() - started

    def _add_training_state(self, folder: Path) -> None:
        if not self.args.save_only_model:
            save_optimizer(folder, self.optimizer, self.lr_scheduler)
        self.state.save_to_json(str(folder / STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
        if self.state.best_global_step:  # beside this one, wherever the folder was when it was saved
            best = Path(checkpoint).with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: every step seeds itself."""

    # -- the Hub

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Nothing: every saved elastic model has its card."""

    def subnet_results(self) -> list[SubnetResult]:
        """Parameters, FLOPs and the metrics of the last evaluation of every sub-network."""
        cost, lengths = CostModel(self.elastic), self.indexed("train" if self.eval_dataset is None else "eval").lengths
        return [
            SubnetResult(
                name,
                count_parameters(self.elastic, subnet),
                cost.mean_flops(subnet, lengths),
                self._last_metrics.get(name, {}),
            )
            for name, subnet in self.subnets.items()
        ]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        for name in (RECORD_FILENAME, GATES_FILENAME):  # the stock method copies configs and weights
            if self.args.should_save and (Path(checkpoint_folder) / name).exists():
                shutil.copy(Path(checkpoint_folder) / name, self.args.path)
        super()._push_from_checkpoint(checkpoint_folder)


def result_record(results: Sequence[SubnetResult], *, device: str) -> dict[str, Any]:
    """What ``limbert.json`` says about the results of sub-networks."""
    return {
        "metrics": {result.subnet: result.metrics for result in results},
        "costs": {result.subnet: {"params": result.params, "flops": round(result.flops)} for result in results},
        "hardware": describe_this_machine(device=device),
    }


_LABEL_NAMES = ("labels", "start_positions", "end_positions")
MAX_IMPORTANCE = 10_000  # examples that score heads and neurons, where the data given has more


def step_seed(seed: int, name: str, step: int) -> int:
    """A seed for every step of every phase."""
    text = f"{seed} {name} {step}".encode()
    value = 14695981039346656037  # FNV-1a: the same on every machine, unlike hash()
    for byte in text:
        value = (value ^ byte) * 1099511628211 % 2**64
    return value % 2**63


def task_type_of(network: PreTrainedModel) -> TaskType:
    """What the outputs of a stock network mean, by its head and its config."""
    name, config = type(network).__name__, network.config
    for task_type, spec in TASK_TYPE_SPECS.items():
        if name.endswith(spec.class_suffix) and spec.problem_type in (None, getattr(config, "problem_type", None)):
            return task_type
    if name.endswith("ForSequenceClassification"):
        return "regression" if config.num_labels == 1 else "classification"
    if name.endswith("ForMaskedLM"):
        return "token-classification"
    raise ConfigError(f"the task of {name} is not known; set task_type of ElasticTrainingArguments")


def task_of(network: PreTrainedModel, task_type: TaskType) -> Task:
    """The task of a network with the label names of its config."""
    config: Any = network.config
    has_names = task_type not in ("regression", "question-answering")
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels)) if has_names else ()
    return custom_task(task_type, names)


def subnets_of_rank(subnets: Mapping[str, Subnet], args: Any) -> dict[str, Subnet]:
    """The sub-networks that one process evaluates.

    Those that share layer runs stay together, unless there are more processes than such groups; large groups are
    paired with small ones. Each sub-network's metrics are those that a single process computes.

    Args:
        subnets: all, by name.
        args: with ``world_size`` and ``process_index``.
    """
    groups = [shared.subnets for shared in plan_shared_forwards(subnets.values())]
    if len(groups) < args.world_size:
        groups = [(subnet,) for subnet in subnets.values()]
    count, rank = args.world_size, args.process_index
    chosen = {
        subnet for group in groups[rank :: 2 * count] + groups[2 * count - 1 - rank :: 2 * count] for subnet in group
    }
    return {name: subnet for name, subnet in subnets.items() if subnet in chosen}


def _default_metrics(
    network: PreTrainedModel, task_type: TaskType
) -> Callable[[EvalPrediction], dict[str, float]] | None:
    """The metrics of a task with one label a text; None for others: only the loss is computed."""
    if TASK_TYPE_SPECS[task_type].token_level:
        return None
    task = task_of(network, task_type)

    def compute(prediction: Any) -> dict[str, float]:
        return compute_task_metrics(task, prediction.predictions, prediction.label_ids)

    return compute


def _map_datasets(function: Callable[[Any], Any], dataset: Any) -> Any:
    """A dataset, or each of several by name, mapped; None stays None."""
    if dataset is None or isinstance(dataset, str):
        return dataset
    return {name: function(part) for name, part in dataset.items()} if isinstance(dataset, dict) else function(dataset)
