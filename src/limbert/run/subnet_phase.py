"""Phases that train the encoder itself: some sub-networks, with a teacher or with labels."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from limbert.core.config import PhaseConfig
from limbert.core.subnet import Subnet
from limbert.method.grafting import graft
from limbert.method.importance import Piece, importance_in_pieces
from limbert.model.elastic import ElasticModel
from limbert.model.shared_forward import plan_passes
from limbert.train.context import EncoderWork, Phase
from limbert.train.distributed import Processes
from limbert.train.trainer import Trainer


@dataclass(frozen=True)
class SubnetPhase(Phase):
    """A phase that trains sub-networks of the encoder. Gates that the model had are dropped: they fit old weights.

    Attributes:
        subnets: the sub-networks that it trains, by name, largest first.
        distils: whether it learns from a teacher: the model as it was when the phase began.
        prepare: how heads and neurons are put in order before the first step, with labelled batches of the validation
            slice, in pieces.
    """

    subnets: Callable[[ElasticModel], dict[str, Subnet]] = field(default=lambda model: model.subnets())
    distils: bool = False
    prepare: Callable[[ElasticModel, Iterable[Iterable[Piece]]], None] = field(default=lambda model, batches: None)

    @property
    def config_class(self) -> type[PhaseConfig]:
        return PhaseConfig

    def train(self, work: EncoderWork, config: PhaseConfig) -> None:
        model = work.model
        model.gates = None
        processes = Processes.of(work.surroundings.accelerator)
        if not work.keeps_order:
            processes.from_main(lambda: self.prepare(model, work.scoring_batches(config.batch_size)))
        processes.share_weights(model.network)
        teacher = ElasticModel(copy.deepcopy(model.network).requires_grad_(False).eval()) if self.distils else None
        subnets = self.subnets(model)
        trainer = Trainer(
            work.name,
            model=model,
            teacher=teacher,
            subnets=tuple(subnets.values()),
            config=config,
            kind=work.kind,
            surroundings=work.surroundings,
        )

        def graft_on_main() -> None:
            scores = importance_in_pieces(model, work.scoring_batches(config.batch_size))
            graft(model, scores, rate=config.graft_rate, share=config.graft_share)

        def graft_now() -> None:
            processes.from_main(graft_on_main)
            processes.share_weights(model.network)

        trainer.fit(work.train, lambda: _mean_score(work, subnets, processes), graft=graft_now)


def shared_out(subnets: dict[str, Subnet], processes: Processes) -> dict[str, Subnet]:
    """The sub-networks that this process measures.

    Those that share layer runs stay together, unless there are more processes than such groups. Large groups go with
    small ones. What is measured of a sub-network is so the very number that one process alone finds.
    """
    groups = [shared.subnets for shared in plan_passes(subnets.values())]
    if len(groups) < processes.count:
        groups = [(subnet,) for subnet in subnets.values()]
    count, rank = processes.count, processes.rank
    dealt = groups[rank :: 2 * count] + groups[2 * count - 1 - rank :: 2 * count]
    mine = {subnet for group in dealt for subnet in group}
    return {name: subnet for name, subnet in subnets.items() if subnet in mine}


def _mean_score(work: EncoderWork, subnets: dict[str, Subnet], processes: Processes) -> float:
    """How good the sub-networks are on what was kept back, on average."""
    scores = work.scores(shared_out(subnets, processes))
    found = {name: score for part in processes.gather(scores) for name, score in part.items()}
    return sum(found[name] for name in subnets) / len(subnets)
