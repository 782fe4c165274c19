"""What a training phase is, and what it is given to work on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from accelerate import Accelerator
from torch import Tensor

from limbert.core.config import AnyPhaseConfig, Precision, TaskKind
from limbert.core.subnet import Subnet
from limbert.data.task_registry import score
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.inference.predict import subnet_logits
from limbert.method.importance import Piece
from limbert.model.elastic import ElasticModel
from limbert.model.outputs import stock_labels
from limbert.train.distributed import Processes
from limbert.train.progress import Monitor
from limbert.train.run_folder import Workspace


@dataclass(frozen=True)
class Surroundings:
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
    workspace: Workspace
    checkpoint_every: float
    monitor: Monitor
    should_stop: Callable[[], bool]


class TrainingRows(Protocol):
    """What a phase trains on: rows of a task, or sequences of a corpus."""

    def __len__(self) -> int: ...

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> Sequence[list[int]]:
        """One epoch of batches of row numbers, every row once."""

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch; every tensor has a row for each of them, so that processes can share it out."""

    def ready(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the network takes, and ``labels`` for its answers, of a batch or some rows of one."""


def step_seed(seed: int, name: str, number: int) -> int:
    """A seed of its own for every step of every phase."""
    text = f"{seed} {name} {number}".encode()
    value = 14695981039346656037  # FNV-1a: the same on every machine, unlike hash()
    for byte in text:
        value = (value ^ byte) * 1099511628211 % 2**64
    return value % 2**63


Material = Literal["labels", "text"]


class EncoderWork(Protocol):
    """What a phase that trains the encoder needs to know, whatever it learns from."""

    @property
    def name(self) -> str:
        """The phase's, for reports and saved states."""

    @property
    def model(self) -> ElasticModel:
        """Trained in place."""

    @property
    def train(self) -> TrainingRows:
        """What it learns from."""

    @property
    def kind(self) -> TaskKind:
        """What the model's outputs mean."""

    @property
    def surroundings(self) -> Surroundings:
        """Device, seed, workspace and monitor."""

    @property
    def keeps_order(self) -> bool:
        """Whether heads and neurons are in an order that was trained already, so that it must stay."""

    def scoring_batches(self, batch_size: int) -> Iterator[Iterable[Piece]]:
        """Labelled batches kept back from training, each in pieces as large as a process trains on, on the device."""

    def scores(self, subnets: Mapping[str, Subnet]) -> dict[str, float]:
        """How good sub-networks are on what was kept back, by name; higher is better."""


@dataclass(frozen=True)
class PhaseWork:
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
    train: TokenizedExamples
    validation: TokenizedExamples
    precision: Precision
    surroundings: Surroundings
    keeps_order: bool = False

    @property
    def kind(self) -> TaskKind:
        """What the model's outputs mean."""
        return self.task.kind

    def scoring_batches(self, batch_size: int) -> Iterator[Iterable[Piece]]:
        """Labelled batches of the validation slice, in pieces on the model's device, as stock networks take them."""
        processes = Processes.of(self.surroundings.accelerator)
        for indices in evaluation_batches(self.validation.lengths, batch_size=batch_size):
            parts = processes.parts(self.validation.collate(indices))
            yield ((self._as_stock(part), share.labels) for part, share in parts)

    def _as_stock(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the model's device, with labels by the names that a stock network knows."""
        device = self.surroundings.accelerator.device
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        return moved | stock_labels(moved.pop("labels"), kind=self.task.kind)

    def scores(self, subnets: Mapping[str, Subnet]) -> dict[str, float]:
        """The task's primary metric of sub-networks on the validation slice, by name."""
        answers = subnet_logits(self.model, self.validation, subnets=subnets, batch_size=64, precision=self.precision)
        primary = self.task.primary
        return {name: score(self.task, logits, self.validation)[primary] for name, logits in answers.items()}


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
    learns_from: frozenset[Material] = frozenset({"labels"})

    @property
    @abstractmethod
    def config_class(self) -> type[AnyPhaseConfig]:
        """The settings that it has."""

    def check(self, model: ElasticModel, config: Any) -> None:
        """Refuse, before anything is written, settings that this model cannot have."""
        return None

    @abstractmethod
    def train(self, work: Any, config: Any) -> None:
        """Train ``work.model`` in place, from the phase's saved state if there is one.

        Args:
            work: a `PhaseWork`; a phase that can learn from text takes any `EncoderWork`.
            config: of the phase's ``config_class``.

        Raises:
            Stopped: when asked to stop, after saving the state.
            StorageError: if a state cannot be saved.
        """
