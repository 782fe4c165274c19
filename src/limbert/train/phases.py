"""The training phases by name. Adding one adds an entry here; nothing else lists them."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from limbert.core.config import PhaseConfig
from limbert.core.subnet import Subnet
from limbert.errors import ConfigError
from limbert.method.grafting import graft
from limbert.method.importance import Piece, importance_in_pieces
from limbert.method.rewiring import rewire
from limbert.model.elastic import ElasticModel
from limbert.model.shared_forward import plan_passes
from limbert.train.context import EncoderWork, Material, Phase
from limbert.train.distributed import Processes
from limbert.train.gates import GatePhase
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


def _full(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if subnet == model.full}


def _full_depth(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if len(subnet.layers) == model.shape.layers}


def _rewire(model: ElasticModel, batches: Iterable[Iterable[Piece]]) -> None:
    rewire(model, importance_in_pieces(model, batches))


_EITHER: frozenset[Material] = frozenset({"labels", "text"})

PHASES: dict[str, Phase] = {
    "finetune": SubnetPhase(
        help="the whole model on the task's labels: the teacher",
        defaults={"label_weight": 1.0},
        subnets=_full,
    ),
    "width": SubnetPhase(
        help="rewire once, then all widths at full depth, taught by the model as it was",
        learns_from=_EITHER,
        defaults={"logit_weight": 1.0, "hidden_weight": 0.1},
        subnets=_full_depth,
        distils=True,
        prepare=_rewire,
    ),
    "depth": SubnetPhase(
        help="all widths at all depths, taught by the result of the width phase",
        learns_from=_EITHER,
        defaults={"logit_weight": 1.0, "hidden_weight": 1.0, "teacher_width": "matched"},
        distils=True,
    ),
    "final": SubnetPhase(
        help="all widths at all depths on the true labels, without a teacher",
        learns_from=_EITHER,
        defaults={"label_weight": 1.0},
    ),
    "gates": GatePhase(help="gates that choose each input's widths, with the encoder frozen", defaults={}),
    "mlm": SubnetPhase(
        help="the whole model on the hidden words of a text: the teacher of pre-training",
        defaults={"label_weight": 1.0},
        learns_from=frozenset({"text"}),
        subnets=_full,
    ),
}


def check_material(phases: Iterable[str], material: Material) -> None:
    """Refuse phases that cannot learn from what a run has.

    Raises:
        ConfigError: naming the first, and those that can.
    """
    for name in phases:
        if material not in PHASES[name].learns_from:
            able = ", ".join(other for other, phase in PHASES.items() if material in phase.learns_from)
            verb = {"labels": "train", "text": "pretrain"}[material]
            raise ConfigError(f"phase {name!r} cannot learn from {material}; limbert {verb} has phases {able}")
