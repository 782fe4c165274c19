"""What a training phase is, and what it is given to work on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from accelerate import Accelerator
from torch import Tensor

from limbert.core.config import AnyPhaseConfig, Precision, TaskType
from limbert.core.subnet import Subnet
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.inference.predict import predict_subnet_logits
from limbert.method.importance import WeightedMicroBatch
from limbert.model.elastic import ElasticModel
from limbert.model.outputs import label_inputs
from limbert.train.distributed import DistributedContext
from limbert.train.progress import TrainingCallback
from limbert.train.run_folder import RunDirectory


@dataclass(frozen=True)
class TrainingContext:
    """What holds for all phases of a run.

    Attributes:
        accelerator: device and precision.
        seed: of everything random.
        workspace: where the running phase keeps its state and its log.
        checkpoint_every: seconds between saved states.
        monitor: told how it goes.
        should_stop: asked after every step; a yes in one process stops all.
    """

    accelerator: Accelerator
    seed: int
    run_dir: RunDirectory
    checkpoint_every: float
    callback: TrainingCallback
    should_stop: Callable[[], bool]


class TrainDataset(Protocol):
    """What a phase trains on: rows of a task, or sequences of a corpus."""

    def __len__(self) -> int: ...

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> Sequence[list[int]]:
        """One epoch of batches of row numbers, every row once."""

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch; every tensor has a row for each of them, so that processes can share it out."""

    def prepare_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the network takes, and ``labels`` for its answers, of a batch or some rows of one."""


def step_seed(seed: int, name: str, step: int) -> int:
    """A seed of its own for every step of every phase."""
    text = f"{seed} {name} {step}".encode()
    value = 14695981039346656037  # FNV-1a: the same on every machine, unlike hash()
    for byte in text:
        value = (value ^ byte) * 1099511628211 % 2**64
    return value % 2**63


Supervision = Literal["labels", "text"]


class PhaseSetup(Protocol):
    """What a phase that trains the encoder needs to know, whatever it learns from."""

    @property
    def name(self) -> str:
        """The phase's, for reports and saved states."""

    @property
    def model(self) -> ElasticModel:
        """Trained in place."""

    @property
    def train_dataset(self) -> TrainDataset:
        """What it learns from."""

    @property
    def task_type(self) -> TaskType:
        """What the model's outputs mean."""

    @property
    def context(self) -> TrainingContext:
        """Device, seed, workspace and monitor."""

    @property
    def is_rewired(self) -> bool:
        """Whether heads and neurons are in an order that was trained already, so that it must stay."""

    def importance_batches(self, batch_size: int) -> Iterator[Iterable[WeightedMicroBatch]]:
        """Labelled batches kept back from training, each in pieces as large as a process trains on, on the device."""

    def validation_scores(self, subnets: Mapping[str, Subnet]) -> dict[str, float]:
        """How good sub-networks are on what was kept back, by name; higher is better."""


@dataclass(frozen=True)
class TaskPhaseSetup:
    """What one phase of a run works on.

    Attributes:
        name: the phase's, for reports and saved states.
        model: trained in place.
        task: what the labels mean.
        train: labelled training rows.
        validation: labelled rows kept back from training; they choose and score, the development set never does.
        precision: of the passes that need no gradients.
        surroundings: device, seed, workspace and monitor.
        keeps_order: whether heads and neurons are in an order that was trained already, so that it must stay.
    """

    name: str
    model: ElasticModel
    task: Task
    train_dataset: TokenizedExamples
    eval_dataset: TokenizedExamples
    precision: Precision
    context: TrainingContext
    is_rewired: bool = False

    @property
    def task_type(self) -> TaskType:
        """What the model's outputs mean."""
        return self.task.task_type

    def importance_batches(self, batch_size: int) -> Iterator[Iterable[WeightedMicroBatch]]:
        """Labelled batches of the validation slice, in pieces on the model's device, as stock networks take them."""
        processes = DistributedContext.from_accelerator(self.context.accelerator)
        for indices in evaluation_batches(self.eval_dataset.lengths, batch_size=batch_size):
            parts = processes.all_shards(self.eval_dataset.collate(indices))
            yield ((self._to_stock_batch(part), share.labels) for part, share in parts)

    def _to_stock_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the model's device, with labels by the names that a stock network knows."""
        device = self.context.accelerator.device
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        return moved | label_inputs(moved.pop("labels"), task_type=self.task.task_type)

    def validation_scores(self, subnets: Mapping[str, Subnet]) -> dict[str, float]:
        """The task's primary metric of sub-networks on the validation slice, by name."""
        answers = predict_subnet_logits(
            self.model, self.eval_dataset, subnets=subnets, batch_size=64, precision=self.precision
        )
        primary = self.task.primary_metric
        return {
            name: compute_task_metrics(self.task, logits, self.eval_dataset)[primary]
            for name, logits in answers.items()
        }


@dataclass(frozen=True)
class Phase(ABC):
    """One stage of training.

    Attributes:
        help: one line for people.
        defaults: settings where a recipe says nothing.
        learns_from: what it can learn from: ``labels`` of a task, or the hidden words of ``text``.
    """

    help: str
    defaults: Mapping[str, Any]
    supervision: frozenset[Supervision] = frozenset({"labels"})

    @property
    @abstractmethod
    def config_class(self) -> type[AnyPhaseConfig]:
        """The settings that it has."""

    def check(self, model: ElasticModel, config: Any) -> None:
        """Refuse, before anything is written, settings that this model cannot have."""
        return None

    @abstractmethod
    def train(self, setup: Any, config: Any) -> None:
        """Train ``work.model`` in place, from the phase's saved state if there is one.

        Args:
            work: a `PhaseWork`; a phase that can learn from text takes any `EncoderWork`.
            config: of the phase's ``config_class``.

        Raises:
            TrainingInterrupted: when asked to stop, after saving the state.
            StorageError: if a state cannot be saved.
        """
