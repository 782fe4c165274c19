"""A `transformers.Trainer` of an elastic model: unwrapped, with whole checkpoints, evaluating all sub-networks."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, Trainer
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from limbert.core.config import TaskType
from limbert.core.subnet import Subnet
from limbert.core.task_types import IGNORE_INDEX, TASK_TYPE_SPECS
from limbert.data.metrics import compute_metrics as compute_task_metrics
from limbert.data.tasks import Task, custom_task
from limbert.errors import ConfigError
from limbert.evaluation.evaluate import count_parameters
from limbert.evaluation.hardware import describe_this_machine
from limbert.evaluation.results import SubnetResult
from limbert.method.calibration import TEMPERATURES_KEY
from limbert.method.losses import label_loss
from limbert.model.checkpoint import RECORD_FILENAME
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.model.shared_forward import SubnetOutput, plan_shared_forwards, run_shared_forward
from limbert.model.width_gates import GATES_FILENAME
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.checkpoints import STATE_NAME, checkpoint_path, load_optimizer, save_optimizer, write_into
from limbert.train.data import Batch, Indices, pop_labels
from limbert.train.distributed import gather_dict, rank, world_size

logger = logging.getLogger(__name__)

SubnetMetrics = dict[str, dict[str, float]]  # metrics by name, by the name of the sub-network
EvaluateSubnets = Callable[[ElasticModel, Mapping[str, Subnet]], SubnetMetrics]
MetricFunction = Callable[[EvalPrediction], dict[str, float]]


class SubnetTrainer(Trainer):
    """What `ElasticTrainer` has beside its training steps.

    It runs without DistributedDataParallel and without autocast around ``forward``, its checkpoints are elastic
    checkpoints with the training's state beside them, and it evaluates every sub-network.

    Attributes:
        elastic: the model.
        subnets: by name, largest first.
        evaluate_subnets: instead of the stock evaluation loop.
        metric_function: of one sub-network's predictions.
        index: gives what users bring the methods of `IndexDataset`.
        examples_seen: over all processes since the last log.
        speed_since: when that was; moved on by what is no training.
    """

    args: ElasticTrainingArguments
    elastic: ElasticModel
    model: Any  # transformers' types allow None and dictionaries everywhere
    train_dataset: Any
    eval_dataset: Any
    subnets: dict[str, Subnet]
    evaluate_subnets: EvaluateSubnets | None
    metric_function: MetricFunction | None
    index: Callable[[Any], Any]
    task_type: TaskType
    _class_weights: Tensor | None = None
    _eval_order: np.ndarray | None = None
    _last_metrics: SubnetMetrics | None = None

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

    def loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """A DataLoader of indices with the workers that the arguments set; ``collate_fn`` fetches the examples."""
        args = self.args
        return DataLoader(
            Indices(dataset),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            **options,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.monotonic()
            logs["examples_per_second"] = self.examples_seen / max(now - self.speed_since, 1e-9)
            self.examples_seen, self.speed_since = 0, now
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the stock estimate assumes one pass of the full network

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Nothing: every saved elastic model has its card."""

    # -- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._last_metrics:  # the model card shows them
            self.elastic.record |= result_record(self.subnet_results(), device=self.args.device.type)
        if self.args.should_save:
            write_into(output_dir or self.args.output_dir, self._save_elastic)

    def _save_elastic(self, folder: Path, add_files: Callable[[Path], None] = lambda folder: None) -> None:
        self.elastic.save_pretrained(folder, tokenizer=self.processing_class, add_files=add_files)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        started, state, output_dir = time.monotonic(), self.state, self.args.output_dir
        folder = checkpoint_path(output_dir, state.global_step)
        if state.best_global_step:
            state.best_model_checkpoint = str(checkpoint_path(output_dir, state.best_global_step))
        if self.args.should_save:
            callbacks: list[Any] = [*self.callback_handler.callbacks, self.control]
            exportable = [callback for callback in callbacks if isinstance(callback, ExportableState)]
            state.stateful_callbacks = TrainerState(stateful_callbacks=exportable).stateful_callbacks  # type: ignore[arg-type]
            self._save_elastic(folder, self._add_training_state)
            rotate_checkpoints(str(output_dir), self.args.save_total_limit, state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()  # others may load the best one next
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        self.speed_since += time.monotonic() - started

    def _add_training_state(self, folder: Path) -> None:
        if not self.args.save_only_model:
            save_optimizer(folder, self.optimizer, self.lr_scheduler)
        self.state.save_to_json(str(folder / STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
            if self.state.best_global_step:  # beside this one, wherever the folder was when it was saved
                best = checkpoint_path(Path(checkpoint).parent, self.state.best_global_step)
                self.state.best_model_checkpoint = str(best)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: every step seeds itself."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        for name in (RECORD_FILENAME, GATES_FILENAME):  # the stock method copies config and weights
            if self.args.should_save and (Path(checkpoint_folder) / name).exists():
                shutil.copy(Path(checkpoint_folder) / name, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    # -- evaluation

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
        loss = partial(F.cross_entropy, logits, labels, weight=weights, label_smoothing=smoothing)
        return loss() if labels.is_floating_point() else loss(ignore_index=IGNORE_INDEX)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        chosen: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.index(self.eval_dataset[chosen] if isinstance(chosen, str) else chosen)  # type: ignore[index]
        if dataset is None:
            raise ConfigError("evaluation needs an eval_dataset")
        self._eval_order = np.argsort(-dataset.lengths, kind="stable")  # little padding; undone before metrics
        return self._test_loader(dataset, sampler=self._eval_order.tolist())

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        self._eval_order = None  # predict() returns the order of the dataset
        return self._test_loader(self.index(test_dataset))

    def _test_loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        def collate(indices: list[int]) -> Batch:
            return dataset.prepare_inputs(dataset.collate(indices))

        loader = self.loader(dataset, collate_fn=collate, batch_size=self.args.eval_batch_size, **options)
        return self.accelerator.prepare(loader)

    def validation_dataset(self) -> Any:
        """The evaluation data, the first of several; without any the training data."""
        dataset: Any = self.train_dataset if self.eval_dataset is None else self.eval_dataset
        return next(iter(dataset.values())) if isinstance(dataset, dict) else dataset

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of every sub-network, ``eval_0.5x0.75/accuracy``, and their means, ``eval_accuracy``."""
        started = time.monotonic()
        if self.evaluate_subnets is None or eval_dataset is not None:
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        else:
            found = gather_dict(self.evaluate_subnets(self.elastic, subnets_of_rank(self.subnets)))
            metrics = {f"{metric_key_prefix}_{key}": value for key, value in self._with_means(found).items()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.speed_since += time.monotonic() - started
        return metrics

    def prediction_step(  # type: ignore[override]  # a tuple of logits, one of each sub-network
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
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
        assert self.metric_function is not None
        predictions: Any = prediction.predictions
        labels: Any = prediction.label_ids
        if self._eval_order is not None and len(labels) == len(self._eval_order):
            back = np.argsort(self._eval_order)
            predictions, labels = tuple(logits[back] for logits in predictions), labels[back]
        found = {
            name: self.metric_function(EvalPrediction(predictions=logits, label_ids=labels))
            for name, logits in zip(self.subnets, predictions, strict=True)
        }
        return self._with_means(found)

    def _with_means(self, found: SubnetMetrics) -> dict[str, float]:
        self._last_metrics = found = {name: found[name] for name in self.subnets}
        keys = next(iter(found.values()))
        means = {key: sum(values[key] for values in found.values()) / len(found) for key in keys}
        return means | {f"{name}/{key}": value for name, values in found.items() for key, value in values.items()}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether to save; of equal metrics the one with the lower validation loss is best, else the later."""
        save_asked, best, step = self.control.should_save, self.state.best_metric, self.state.best_global_step
        is_best = super()._determine_best_metric(metrics, trial)
        name = self.args.metric_for_best_model or ""
        if not is_best and best is not None and metrics.get(f"eval_{name.removeprefix('eval_')}") == best:
            losses = [row["eval_loss"] for row in self.state.log_history if row["step"] == step and "eval_loss" in row]
            if metrics.get("eval_loss", math.inf) <= max(losses, default=math.inf):
                self.state.best_global_step, is_best = self.state.global_step, True
        return is_best or save_asked  # save_strategy="best" saves nothing else in a step with an evaluation

    def subnet_results(self) -> list[SubnetResult]:
        """Parameters, FLOPs and the metrics of the last evaluation of every sub-network."""
        cost, lengths, metrics = CostModel(self.elastic), self.validation_dataset().lengths, self._last_metrics or {}
        return [
            SubnetResult(
                name, count_parameters(self.elastic, item), cost.mean_flops(item, lengths), metrics.get(name, {})
            )
            for name, item in self.subnets.items()
        ]


def step_seed(seed: int, name: str, step: int) -> int:
    """A seed for every step of every phase."""
    value = 14695981039346656037  # FNV-1a: the same on every machine, unlike hash()
    for byte in f"{seed} {name} {step}".encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return value % 2**63


def result_record(results: Sequence[SubnetResult], *, device: str) -> dict[str, Any]:
    """What ``limbert.json`` says about the results of sub-networks."""
    temperatures = {result.subnet: result.calibration.temperature for result in results if result.calibration}
    return {
        "metrics": {result.subnet: result.metrics for result in results},
        "costs": {result.subnet: {"params": result.params, "flops": round(result.flops)} for result in results},
        "hardware": describe_this_machine(device=device),
        **({TEMPERATURES_KEY: temperatures} if temperatures else {}),
    }


def task_type_of(network: PreTrainedModel) -> TaskType:
    """What the outputs of a stock network mean, by its head and its config; ConfigError for another head."""
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
    """The task of a network with labels in its config."""
    labels: Mapping[Any, Any] = network.config.id2label or {}
    names = tuple(map(str, labels.values())) if task_type not in ("regression", "question-answering") else ()
    return custom_task(task_type, names)


def subnets_of_rank(subnets: Mapping[str, Subnet]) -> dict[str, Subnet]:
    """The sub-networks that this process evaluates: every n-th group of those that share layer runs."""
    groups = [shared.subnets for shared in plan_shared_forwards(subnets.values())]
    if len(groups) < world_size():
        groups = [(subnet,) for subnet in subnets.values()]
    mine = {subnet for group in groups[rank() :: world_size()] for subnet in group}
    return {name: subnet for name, subnet in subnets.items() if subnet in mine}


def default_metrics(network: PreTrainedModel, task_type: TaskType) -> MetricFunction | None:
    """The metrics of a task with one output per text; None for others: only the loss is computed."""
    if TASK_TYPE_SPECS[task_type].token_level:
        return None
    task = task_of(network, task_type)
    return lambda prediction: compute_task_metrics(task, prediction.predictions, prediction.label_ids)  # type: ignore[arg-type]
