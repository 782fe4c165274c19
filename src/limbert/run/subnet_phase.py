"""Phases that train the encoder itself: some sub-networks, with a teacher or with labels."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from limbert.core.config import PhaseConfig
from limbert.core.subnet import Subnet
from limbert.data.metrics import compute_metrics
from limbert.method.graft import graft
from limbert.method.importance import importance
from limbert.model.elastic import ElasticModel
from limbert.run.evaluate import subnet_logits
from limbert.run.phase import Phase, PhaseWork
from limbert.run.trainer import Trainer


@dataclass(frozen=True)
class SubnetPhase(Phase):
    """A phase that trains sub-networks of the encoder. Gates that the model had are dropped: they fit old weights.

    Attributes:
        subnets: the sub-networks that it trains, by name, largest first.
        distils: whether it learns from a teacher: the model as it was when the phase began.
        prepare: what is done to the model before the first step, with labelled batches of the validation slice.
    """

    subnets: Callable[[ElasticModel], dict[str, Subnet]] = field(default=lambda model: model.subnets())
    distils: bool = False
    prepare: Callable[[ElasticModel, Iterable[dict[str, Tensor]]], None] = field(default=lambda model, batches: None)

    @property
    def config_class(self) -> type[PhaseConfig]:
        return PhaseConfig

    def train(self, work: PhaseWork, config: PhaseConfig) -> None:
        model = work.model
        model.gates = None
        self.prepare(model, work.scoring_batches(config.batch_size))
        teacher = ElasticModel(copy.deepcopy(model.network).requires_grad_(False).eval()) if self.distils else None
        subnets = self.subnets(model)
        trainer = Trainer(
            work.name,
            model=model,
            teacher=teacher,
            subnets=tuple(subnets.values()),
            config=config,
            kind=work.task.kind,
            surroundings=work.surroundings,
        )

        def graft_now() -> None:
            scores = importance(model, work.scoring_batches(config.batch_size))
            graft(model, scores, rate=config.graft_rate, share=config.graft_share)

        rows = work.augmented if self.distils and work.augmented is not None else work.train
        trainer.fit(rows, lambda: _mean_score(work, subnets), graft=graft_now)


def _mean_score(work: PhaseWork, subnets: dict[str, Subnet]) -> float:
    """The task's primary metric on the validation slice, averaged over the sub-networks."""
    assert work.validation.labels is not None
    labels = work.validation.labels.numpy()
    answers = subnet_logits(work.model, work.validation, subnets=subnets, batch_size=64, precision=work.precision)
    scores = [compute_metrics(work.task, logits, labels)[work.task.primary] for logits in answers.values()]
    return sum(scores) / len(scores)
