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
from limbert.data.augmented import Augmented
from limbert.data.load import TaskData
from limbert.data.readers import Examples
from limbert.data.split import kept_back
from limbert.data.task_registry import prepared as prepared_for
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import Stopped
from limbert.evaluation.results import RESULTS_NAME, Result
from limbert.evaluation.subnets import evaluate
from limbert.inference.base_model import Start, load_start
from limbert.model.checkpoint import versions
from limbert.model.elastic import ElasticModel
from limbert.train.context import EncoderWork, PhaseWork, Surroundings
from limbert.train.distributed import join_processes
from limbert.train.fingerprint import Content, agree, settings_of, task_content, tokens_digest
from limbert.train.phases import PHASES, SubnetPhase, check_material, shared_out
from limbert.train.progress import Monitor
from limbert.train.recipes import Recipe
from limbert.train.run_folder import LOG_NAME, Workspace


def with_copies(
    rows: TokenizedExamples,
    copies: Augmented,
    tokens: TokenizedExamples,
    *,
    train: Examples,
    validation: Examples,
    monitor: Monitor,
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
    places = copies.usable(train=train, validation=validation)
    left_out = len(copies) - len(places)
    monitor.note(
        f"{len(places)} augmented rows in the phases that distil"
        + (f"; {left_out} left out: copies of rows that validate or do not train" if left_out else "")
    )
    chosen = tokens.select(places)
    if copies.logits is None:
        return rows.followed_by(chosen)
    assert rows.labels is not None
    logits = torch.from_numpy(copies.logits[places])  # (copies, outputs)
    if rows.labels.ndim > 1:  # several labels
        return rows.followed_by(chosen.labelled(logits.sigmoid()))
    if rows.labels.is_floating_point():
        return rows.followed_by(chosen.labelled(logits[:, 0]))
    certain = F.one_hot(rows.labels, logits.shape[-1]).float()
    return rows.labelled(certain).followed_by(chosen.labelled(logits.softmax(dim=-1)))


class RunStart(Protocol):
    """What a run begins from."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases of earlier runs that the model has behind it."""

    def model(self, space: Space) -> ElasticModel:
        """Load it."""


class RunMaterials(Protocol):
    """What the phases of one run work on."""

    @property
    def start(self) -> RunStart:
        """What the run begins from."""


M = TypeVar("M", bound=RunMaterials)


class PhasedRun(ABC, Generic[M]):
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
        monitor: Monitor | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        overwrite: bool = False,
        content: Content | None = None,
    ) -> None:
        self.config, self.recipe = config, recipe
        self.processes = join_processes()
        self.monitor = monitor if monitor is not None and self.processes.is_main else Monitor()
        self.settings = settings_of(config, recipe.to_dict(), data_config, content)
        self.workspace = Workspace(config.output, self.settings, overwrite=overwrite, writes=self.processes.is_main)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            log_with="tensorboard" if config.tensorboard else None,
            project_dir=str(self.workspace.folder),
        )
        self._should_stop = should_stop

    def run(self) -> list[Result]:
        """Train what is left to train, write the output folder, and return the results on held-out data.

        Raises:
            Stopped: when asked to stop; the same call goes on from there.
            StorageError: for a full disk; the last saved state stays.
            CheckpointError, UnsupportedModelError: for the model.
            SubnetError: if a width or depth keeps nothing of it.
            ProcessError: if another process of the run has ended.
            ConfigError: if another process of the run has other settings or data, or another run writes here.
        """
        try:
            self.processes.from_main(self.workspace.hold)
            return self._run()
        finally:
            self.workspace.release()

    def _run(self) -> list[Result]:
        """The run, while no other one writes into its output."""
        with self.processes.one_first():
            materials = self._materials()
        if self.processes.count > 1:
            agree(self.processes, self.settings, self._digests(materials))
        start = materials.start
        phases = self._phases(materials)
        model, done = self._resume(start, phases)
        model.space = self.recipe.space
        model.subnets()  # refuses a width or depth that keeps nothing
        for name in phases[done:]:
            PHASES[name].check(model, self.recipe.phases[name])
        self.workspace.create()  # only now: bad input leaves nothing behind
        self.processes.from_main(self.workspace.hold)
        if self.config.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        try:
            for name in phases[done:]:
                PHASES[name].train(self._work(name, model, materials), self.recipe.phases[name])
                model.record = self._record(materials, phases[: phases.index(name) + 1])
                if self.processes.is_main:
                    model.save_pretrained(self.workspace.phase_folder(name), tokenizer=start.tokenizer)
                self.workspace.forget_before(name, phases)
            results = self._evaluate(model, materials)
        except Stopped:
            self.accelerator.end_training()
            raise
        self.accelerator.end_training()
        if self.processes.is_main:
            self._publish(model, start, results)
        return results

    @abstractmethod
    def _materials(self) -> M:
        """Read and tokenise what the phases work on."""

    @abstractmethod
    def _digests(self, materials: M) -> dict[str, str]:
        """Of the tokens that the phases work on, by name: all processes must have the same."""

    @abstractmethod
    def _phases(self, materials: M) -> list[str]:
        """The phases of this run, in order."""

    @abstractmethod
    def _load(self, folder: Path) -> ElasticModel:
        """The result of a finished phase."""

    @abstractmethod
    def _work(self, name: str, model: ElasticModel, materials: M) -> EncoderWork:
        """What one phase is given."""

    @abstractmethod
    def _measure(self, model: ElasticModel, materials: M, subnets: dict[str, Subnet]) -> list[Result]:
        """Sub-networks on data that neither trained nor chose anything."""

    @abstractmethod
    def _record(self, materials: M, phases: list[str]) -> dict[str, Any]:
        """What ``limbert.json`` says after these phases."""

    def _resume(self, start: RunStart, phases: list[str]) -> tuple[ElasticModel, int]:
        """The model to go on with, and how many phases are behind it."""
        last = self.workspace.last_finished(phases)
        self.processes.agree_on(last, what=f"in {self.workspace.folder} as its last finished phase")
        if last is not None:
            folder = self.workspace.phase_folder(last)
            self.monitor.note(f"going on after phase {last} from {folder}")
            model, done = self._load(folder), phases.index(last) + 1
        else:
            model, done = start.model(self.recipe.space), 0
        model.network.to(self.accelerator.device)
        return model, done

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            accelerator=self.accelerator,
            seed=self.config.seed,
            workspace=self.workspace,
            checkpoint_every=self.config.checkpoint_every,
            monitor=self.monitor,
            should_stop=self._should_stop,
        )

    def _evaluate(self, model: ElasticModel, materials: M) -> list[Result]:
        """The results of all sub-networks, each process measuring some of them."""
        subnets = model.subnets()
        measured = self._measure(model, materials, shared_out(subnets, self.processes))
        found = {result.subnet: result for part in self.processes.gather(measured) for result in part}
        return [found[name] for name in subnets]

    def _publish(self, model: ElasticModel, start: RunStart, results: list[Result]) -> None:
        """The finished folder, in one renaming; then the work folder goes."""
        stamp = {
            "seed": self.config.seed,
            "device": self.accelerator.device.type,
            "threads": torch.get_num_threads(),
            "processes": self.processes.count,
            "versions": versions(),
        }

        def add_results(folder: Path) -> None:
            lines = [json.dumps(result.to_dict() | stamp) + "\n" for result in results]
            (folder / RESULTS_NAME).write_text("".join(lines), encoding="utf-8")
            shutil.copy(self.workspace.folder / LOG_NAME, folder / LOG_NAME)
            if (self.workspace.folder / "tensorboard").is_dir():
                shutil.copytree(self.workspace.folder / "tensorboard", folder / "tensorboard")

        model.record = model.record | {"metrics": {result.subnet: result.metrics for result in results}}
        model.save_pretrained(self.config.output, tokenizer=start.tokenizer, add_files=add_results)
        self.workspace.remove()


@dataclass(frozen=True)
class Materials:
    """What the phases of one run work on, tokenised."""

    start: Start
    train: TokenizedExamples
    augmented: TokenizedExamples | None  # these and their copies, for the phases that distil
    validation: TokenizedExamples
    dev: dict[str, TokenizedExamples]


class TrainingRun(PhasedRun[Materials]):
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
        content: Content | None = None,
        **others: Any,
    ) -> None:
        check_material(recipe.phases, "labels")
        content = content or task_content(data, config.model)
        super().__init__(config, recipe, data_config=data_config, content=content, **others)
        self.data_config, self.data = data_config, data

    def _materials(self) -> Materials:
        start = load_start(self.config, self.data.task)
        examples = start.relabelled(self.data.train, self.data.task)
        train, validation = kept_back(examples, start.task, self.config)

        def prepared(part: Examples) -> TokenizedExamples:
            longest = min(self.data_config.max_length, start.longest)
            return prepared_for(part, start.task, start.tokenizer, max_length=longest, stride=self.data_config.stride)

        rows, augmented = prepared(train), None
        if self.data.augmented is not None:
            copies = start.relabelled_copies(self.data.augmented, self.data.task)
            tokens = prepared(copies.examples)  # all of them, so that they are found again whatever rows validate
            augmented = with_copies(rows, copies, tokens, train=train, validation=validation, monitor=self.monitor)
        dev = {name: start.relabelled(part, self.data.task) for name, part in self.data.dev.items()}
        return Materials(
            start, rows, augmented, prepared(validation), {name: prepared(part) for name, part in dev.items()}
        )

    def _digests(self, materials: Materials) -> dict[str, str]:
        parts = {"training_tokens": materials.train, "validation_tokens": materials.validation}
        parts |= {f"development_tokens of {name}": part for name, part in materials.dev.items()}
        if materials.augmented is not None:
            parts["augmented_tokens"] = materials.augmented
        return {name: tokens_digest(part) for name, part in parts.items()}

    def _phases(self, materials: Materials) -> list[str]:
        """The phases of this run: fine-tuning is left out where the start has it behind it and nobody asked for it."""
        phases = list(self.recipe.phases)
        if materials.start.finetuned and self.config.phases is None and "finetune" in phases:
            phases.remove("finetune")
            self.monitor.note(f"{self.config.model} is fine-tuned for these labels; phase finetune is skipped")
        return phases

    def _load(self, folder: Path) -> ElasticModel:
        return ElasticModel.from_pretrained(folder, space=self.recipe.space)

    def _work(self, name: str, model: ElasticModel, materials: Materials) -> PhaseWork:
        phase, rows = PHASES[name], materials.train
        if materials.augmented is not None and isinstance(phase, SubnetPhase) and phase.distils:
            rows = materials.augmented
        return PhaseWork(
            name,
            model=model,
            task=materials.start.task,
            train=rows,
            validation=materials.validation,
            precision=self.config.precision,
            surroundings=self._surroundings(),
            keeps_order="width" in materials.start.phases,
        )

    def _measure(self, model: ElasticModel, materials: Materials, subnets: dict[str, Subnet]) -> list[Result]:
        task, precision = materials.start.task, self.config.precision
        return evaluate(model, materials.dev, task=task, subnets=subnets, precision=precision)

    def _record(self, materials: Materials, phases: list[str]) -> dict[str, Any]:
        start = materials.start
        return {"task": start.task.to_dict(), "phases": [*start.phases, *phases], "settings": self.settings}
