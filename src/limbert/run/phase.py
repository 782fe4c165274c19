"""What a training phase is, and what it is given to work on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from limbert.core.config import GatesConfig, PhaseConfig, Precision
from limbert.data.batches import TokenizedExamples, evaluation_batches
from limbert.data.tasks import Task
from limbert.model.elastic import ElasticModel
from limbert.model.heads import stock_labels
from limbert.run.trainer import Surroundings

AnyPhaseConfig = PhaseConfig | GatesConfig


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
    """

    name: str
    model: ElasticModel
    task: Task
    train: TokenizedExamples
    validation: TokenizedExamples
    precision: Precision
    surroundings: Surroundings

    def scoring_batches(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Labelled batches of the validation slice, on the model's device, as stock networks take them."""
        device = self.surroundings.accelerator.device
        for indices in evaluation_batches(self.validation.lengths, batch_size=batch_size):
            batch = {name: tensor.to(device) for name, tensor in self.validation.collate(indices).items()}
            labels = stock_labels(batch.pop("labels"), kind=self.task.kind)
            yield batch | labels


@dataclass(frozen=True)
class Phase(ABC):
    """One stage of training.

    Attributes:
        help: one line for people.
        defaults: settings where a recipe says nothing.
    """

    help: str
    defaults: Mapping[str, Any]

    @property
    @abstractmethod
    def config_class(self) -> type[AnyPhaseConfig]:
        """The settings that it has."""

    def check(self, model: ElasticModel, config: Any) -> None:
        """Refuse, before anything is written, settings that this model cannot have."""
        return None

    @abstractmethod
    def train(self, work: PhaseWork, config: Any) -> None:
        """Train ``work.model`` in place, from the phase's saved state if there is one.

        Raises:
            Stopped: when asked to stop, after saving the state.
            StorageError: if a state cannot be saved.
        """
