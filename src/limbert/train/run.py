"""A whole training run: phase after phase, interrupted and resumed at will, one checkpoint at the end."""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from limbert.core.config import CorpusConfig, DataConfig, TrainConfig
from limbert.core.space import Space
from limbert.core.subnet import Subnet
from limbert.data.augmented import AugmentedExamples
from limbert.data.load import TaskData
from limbert.data.readers import Examples
from limbert.data.split import train_validation_split
from limbert.data.task_registry import tokenize_for_task as prepared_for
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import TrainingInterrupted
from limbert.evaluation.evaluate import evaluate_subnets
from limbert.evaluation.results import RESULTS_NAME, SubnetResult
from limbert.inference.base_model import TaskBaseCheckpoint, load_base_checkpoint
from limbert.model.checkpoint import library_versions
from limbert.model.elastic import ElasticModel
from limbert.train.context import PhaseSetup, TaskPhaseSetup, TrainingContext
from limbert.train.distributed import init_distributed
from limbert.train.fingerprint import (
    Fingerprints,
    check_same_settings,
    run_settings,
    task_fingerprints,
    tokens_fingerprint,
)
from limbert.train.phases import PHASES, SubnetPhase, check_supervision, subnets_of_rank
from limbert.train.progress import TrainingCallback
from limbert.train.recipes import Recipe
from limbert.train.run_folder import LOG_NAME, RunDirectory


def with_augmented(
    train_dataset: TokenizedExamples,
    augmented: AugmentedExamples,
    augmented_dataset: TokenizedExamples,
    *,
    train_examples: Examples,
    validation_examples: Examples,
    callback: TrainingCallback,
) -> TokenizedExamples:
    """The training rows, then the copies of them; copies of rows that validate, or do not train, are left out.

    Where the copies come with a teacher's logits, these stand for the copies' labels: the label loss of a phase, if it
    has a weight, is then taken to their softmax (with several labels, to their sigmoid; in a regression, to the
    value). The loss on logits is still taken to the phase's own teacher, which sees each copy.

    Args:
        rows: the training rows.
        copies: all of them, with the class ids of the model.
        tokens: of these copies, with their labels.
        train, validation: the rows that train and that validate.
        monitor: told how many copies there are.

    Raises:
        DataError: if no copy is left.
    """
    places = augmented.trainable_indices(train=train_examples, validation=validation_examples)
    left_out = len(augmented) - len(places)
    callback.on_message(
        f"{len(places)} augmented rows in the phases that distil"
        + (f"; {left_out} left out: copies of rows that validate or do not train" if left_out else "")
    )
    chosen = augmented_dataset.select(places)
    if augmented.logits is None:
        return train_dataset.concatenate(chosen)
    assert train_dataset.labels is not None
    logits = torch.from_numpy(augmented.logits[places])  # (copies, outputs)
    if train_dataset.labels.ndim > 1:  # several labels
        return train_dataset.concatenate(chosen.with_labels(logits.sigmoid()))
    if train_dataset.labels.is_floating_point():
        return train_dataset.concatenate(chosen.with_labels(logits[:, 0]))
    certain = F.one_hot(train_dataset.labels, logits.shape[-1]).float()
    return train_dataset.with_labels(certain).concatenate(chosen.with_labels(logits.softmax(dim=-1)))


class BaseCheckpoint(Protocol):
    """What a run begins from."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""

    @property
    def completed_phases(self) -> tuple[str, ...]:
        """Phases of earlier runs that the model has behind it."""

    def load_model(self, space: Space) -> ElasticModel:
        """Load it."""


class RunData(Protocol):
    """What the phases of one run work on."""

    @property
    def base(self) -> BaseCheckpoint:
        """What the run begins from."""


RunDataT = TypeVar("RunDataT", bound=RunData)


class PhasedRun(ABC, Generic[RunDataT]):
    """Everything between the settings and the finished folder, whatever is learned.

    Args:
        config: where from, where to.
        recipe: what is trained, phase by phase, with the batches of all processes together (`Recipe.over`).
        data_config: recorded in the checkpoint.
        monitor: told how it goes.
        should_stop: asked after every step; a True stops the run with its state saved.
        overwrite: discard an unfinished run with other settings.
        content: digests of what the settings name, see `content`.

    Raises:
        ConfigError: if an unfinished run with other settings is there.
        StorageError: if its settings cannot be read.
    """

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        *,
        data_config: DataConfig | CorpusConfig,
        callback: TrainingCallback | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        overwrite: bool = False,
        fingerprints: Fingerprints | None = None,
    ) -> None:
        self.config, self.recipe = config, recipe
        self.distributed = init_distributed()
        self.callback = callback if callback is not None and self.distributed.is_main_process else TrainingCallback()
        self.settings = run_settings(config, recipe.to_dict(), data_config, fingerprints)
        self.run_dir = RunDirectory(
            config.output, self.settings, overwrite=overwrite, can_write=self.distributed.is_main_process
        )
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            log_with="tensorboard" if config.tensorboard else None,
            project_dir=str(self.run_dir.path),
        )
        self._should_stop = should_stop

    def run(self) -> list[SubnetResult]:
        """Train what is left to train, write the output folder, and return the results on held-out data.

        Raises:
            TrainingInterrupted: when asked to stop; the same call goes on from there.
            StorageError: for a full disk; the last saved state stays.
            CheckpointError, UnsupportedModelError: for the model.
            SubnetError: if a width or depth keeps nothing of it.
            ProcessError: if another process of the run has ended.
            ConfigError: if another process of the run has other settings or data, or another run writes here.
        """
        try:
            self.distributed.run_on_main(self.run_dir.lock)
            return self._run()
        finally:
            self.run_dir.unlock()

    def _run(self) -> list[SubnetResult]:
        """The run, while no other one writes into its output."""
        with self.distributed.local_main_process_first():
            materials = self._load_data()
        if self.distributed.world_size > 1:
            check_same_settings(self.distributed, self.settings, self._dataset_fingerprints(materials))
        start = materials.base
        phases = self._phases(materials)
        model, done = self._resume(start, phases)
        model.space = self.recipe.space
        model.subnets()  # refuses a width or depth that keeps nothing
        for name in phases[done:]:
            PHASES[name].check(model, self.recipe.phases[name])
        self.run_dir.create()  # only now: bad input leaves nothing behind
        self.distributed.run_on_main(self.run_dir.lock)
        if self.config.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        try:
            for name in phases[done:]:
                PHASES[name].train(self._phase_setup(name, model, materials), self.recipe.phases[name])
                model.record = self._checkpoint_record(materials, phases[: phases.index(name) + 1])
                if self.distributed.is_main_process:
                    model.save_pretrained(self.run_dir.phase_dir(name), tokenizer=start.tokenizer)
                self.run_dir.delete_obsolete(name, phases)
            results = self._evaluate(model, materials)
        except TrainingInterrupted:
            self.accelerator.end_training()
            raise
        self.accelerator.end_training()
        if self.distributed.is_main_process:
            self._save_output(model, start, results)
        return results

    @abstractmethod
    def _load_data(self) -> RunDataT:
        """Read and tokenise what the phases work on."""

    @abstractmethod
    def _dataset_fingerprints(self, data: RunDataT) -> dict[str, str]:
        """Of the tokens that the phases work on, by name: all processes must have the same."""

    @abstractmethod
    def _phases(self, data: RunDataT) -> list[str]:
        """The phases of this run, in order."""

    @abstractmethod
    def _load_phase_result(self, folder: Path) -> ElasticModel:
        """The result of a finished phase."""

    @abstractmethod
    def _phase_setup(self, name: str, model: ElasticModel, data: RunDataT) -> PhaseSetup:
        """What one phase is given."""

    @abstractmethod
    def _evaluate_subnets(self, model: ElasticModel, data: RunDataT, subnets: dict[str, Subnet]) -> list[SubnetResult]:
        """Sub-networks on data that neither trained nor chose anything."""

    @abstractmethod
    def _checkpoint_record(self, data: RunDataT, phases: list[str]) -> dict[str, Any]:
        """What ``limbert.json`` says after these phases."""

    def _resume(self, base: BaseCheckpoint, phases: list[str]) -> tuple[ElasticModel, int]:
        """The model to go on with, and how many phases are behind it."""
        last = self.run_dir.last_finished_phase(phases)
        self.distributed.check_equal(last, description=f"in {self.run_dir.path} as its last finished phase")
        if last is not None:
            folder = self.run_dir.phase_dir(last)
            self.callback.on_message(f"going on after phase {last} from {folder}")
            model, done = self._load_phase_result(folder), phases.index(last) + 1
        else:
            model, done = base.load_model(self.recipe.space), 0
        model.network.to(self.accelerator.device)
        return model, done

    def _training_context(self) -> TrainingContext:
        return TrainingContext(
            accelerator=self.accelerator,
            seed=self.config.seed,
            run_dir=self.run_dir,
            checkpoint_every=self.config.checkpoint_every,
            callback=self.callback,
            should_stop=self._should_stop,
        )

    def _evaluate(self, model: ElasticModel, data: RunDataT) -> list[SubnetResult]:
        """The results of all sub-networks, each process measuring some of them."""
        subnets = model.subnets()
        measured = self._evaluate_subnets(model, data, subnets_of_rank(subnets, self.distributed))
        found = {result.subnet: result for part in self.distributed.all_gather_object(measured) for result in part}
        return [found[name] for name in subnets]

    def _save_output(self, model: ElasticModel, base: BaseCheckpoint, results: list[SubnetResult]) -> None:
        """The finished folder, in one renaming; then the work folder goes."""
        stamp = {
            "seed": self.config.seed,
            "device": self.accelerator.device.type,
            "threads": torch.get_num_threads(),
            "processes": self.distributed.world_size,
            "versions": library_versions(),
        }

        def add_results(folder: Path) -> None:
            lines = [json.dumps(result.to_dict() | stamp) + "\n" for result in results]
            (folder / RESULTS_NAME).write_text("".join(lines), encoding="utf-8")
            shutil.copy(self.run_dir.path / LOG_NAME, folder / LOG_NAME)
            if (self.run_dir.path / "tensorboard").is_dir():
                shutil.copytree(self.run_dir.path / "tensorboard", folder / "tensorboard")

        model.record = model.record | {"metrics": {result.subnet: result.metrics for result in results}}
        model.save_pretrained(self.config.output, tokenizer=base.tokenizer, add_files=add_results)
        self.run_dir.remove()


@dataclass(frozen=True)
class TaskRunData:
    """What the phases of one run work on, tokenised."""

    base: TaskBaseCheckpoint
    train_dataset: TokenizedExamples
    augmented_dataset: TokenizedExamples | None  # these and their copies, for the phases that distil
    eval_dataset: TokenizedExamples
    dev_datasets: dict[str, TokenizedExamples]


class TrainingRun(PhasedRun[TaskRunData]):
    """Training on a task; for the arguments see `PhasedRun`.

    Args:
        config, recipe, others: as there.
        data_config: where evaluation finds the columns.
        data: the examples that it names.
        content: of `task_content`, where it is known already.
    """

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        *,
        data_config: DataConfig,
        data: TaskData,
        fingerprints: Fingerprints | None = None,
        **kwargs: Any,
    ) -> None:
        check_supervision(recipe.phases, "labels")
        fingerprints = fingerprints or task_fingerprints(data, config.model)
        super().__init__(config, recipe, data_config=data_config, fingerprints=fingerprints, **kwargs)
        self.data_config, self.data = data_config, data

    def _load_data(self) -> TaskRunData:
        start = load_base_checkpoint(self.config, self.data.task)
        examples = start.map_labels(self.data.train, self.data.task)
        train, validation = train_validation_split(examples, start.task, self.config)

        def prepared(part: Examples) -> TokenizedExamples:
            longest = min(self.data_config.max_length, start.max_length)
            return prepared_for(part, start.task, start.tokenizer, max_length=longest, stride=self.data_config.stride)

        rows, augmented = prepared(train), None
        if self.data.augmented is not None:
            copies = start.map_augmented_labels(self.data.augmented, self.data.task)
            tokens = prepared(copies.examples)  # all of them, so that they are found again whatever rows validate
            augmented = with_augmented(
                rows, copies, tokens, train_examples=train, validation_examples=validation, callback=self.callback
            )
        dev = {name: start.map_labels(part, self.data.task) for name, part in self.data.dev.items()}
        return TaskRunData(
            start, rows, augmented, prepared(validation), {name: prepared(part) for name, part in dev.items()}
        )

    def _dataset_fingerprints(self, data: TaskRunData) -> dict[str, str]:
        parts = {"training_tokens": data.train_dataset, "validation_tokens": data.eval_dataset}
        parts |= {f"development_tokens of {name}": part for name, part in data.dev_datasets.items()}
        if data.augmented_dataset is not None:
            parts["augmented_tokens"] = data.augmented_dataset
        return {name: tokens_fingerprint(part) for name, part in parts.items()}

    def _phases(self, data: TaskRunData) -> list[str]:
        """The phases of this run: fine-tuning is left out where the start has it behind it and nobody asked for it."""
        phases = list(self.recipe.phases)
        if data.base.is_finetuned and self.config.phases is None and "finetune" in phases:
            phases.remove("finetune")
            self.callback.on_message(f"{self.config.model} is fine-tuned for these labels; phase finetune is skipped")
        return phases

    def _load_phase_result(self, folder: Path) -> ElasticModel:
        return ElasticModel.from_pretrained(folder, space=self.recipe.space)

    def _phase_setup(self, name: str, model: ElasticModel, data: TaskRunData) -> TaskPhaseSetup:
        phase, rows = PHASES[name], data.train_dataset
        if data.augmented_dataset is not None and isinstance(phase, SubnetPhase) and phase.uses_teacher:
            rows = data.augmented_dataset
        return TaskPhaseSetup(
            name,
            model=model,
            task=data.base.task,
            train_dataset=rows,
            eval_dataset=data.eval_dataset,
            precision=self.config.precision,
            context=self._training_context(),
            is_rewired="width" in data.base.completed_phases,
        )

    def _evaluate_subnets(
        self, model: ElasticModel, data: TaskRunData, subnets: dict[str, Subnet]
    ) -> list[SubnetResult]:
        task, precision = data.base.task, self.config.precision
        return evaluate_subnets(model, data.dev_datasets, task=task, subnets=subnets, precision=precision)

    def _checkpoint_record(self, data: TaskRunData, phases: list[str]) -> dict[str, Any]:
        start = data.base
        return {"task": start.task.to_dict(), "phases": [*start.completed_phases, *phases], "settings": self.settings}
