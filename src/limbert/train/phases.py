"""The training phases by name. Adding one adds an entry here; nothing else lists them."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from limbert.core.config import PhaseConfig
from limbert.core.subnet import Subnet
from limbert.errors import ConfigError
from limbert.method.grafting import graft
from limbert.method.importance import WeightedMicroBatch, importance_from_micro_batches
from limbert.method.rewiring import rewire
from limbert.model.elastic import ElasticModel
from limbert.model.shared_forward import plan_shared_forwards
from limbert.train.context import Phase, PhaseSetup, Supervision
from limbert.train.distributed import DistributedContext
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

    select_subnets: Callable[[ElasticModel], dict[str, Subnet]] = field(default=lambda model: model.subnets())
    uses_teacher: bool = False
    prepare: Callable[[ElasticModel, Iterable[Iterable[WeightedMicroBatch]]], None] = field(
        default=lambda model, batches: None
    )

    @property
    def config_class(self) -> type[PhaseConfig]:
        return PhaseConfig

    def train(self, setup: PhaseSetup, config: PhaseConfig) -> None:
        model = setup.model
        model.gates = None
        processes = DistributedContext.from_accelerator(setup.context.accelerator)
        if not setup.is_rewired:
            processes.run_on_main(lambda: self.prepare(model, setup.importance_batches(config.batch_size)))
        processes.broadcast_weights(model.network)
        teacher = ElasticModel(copy.deepcopy(model.network).requires_grad_(False).eval()) if self.uses_teacher else None
        subnets = self.select_subnets(model)
        trainer = Trainer(
            setup.name,
            model=model,
            teacher=teacher,
            subnets=tuple(subnets.values()),
            config=config,
            task_type=setup.task_type,
            context=setup.context,
        )

        def graft_on_main() -> None:
            scores = importance_from_micro_batches(model, setup.importance_batches(config.batch_size))
            graft(model, scores, rate=config.graft_rate, weak_fraction=config.graft_share)

        def graft_now() -> None:
            processes.run_on_main(graft_on_main)
            processes.broadcast_weights(model.network)

        trainer.fit(setup.train_dataset, lambda: _mean_validation_score(setup, subnets, processes), graft=graft_now)


def subnets_of_rank(subnets: dict[str, Subnet], distributed: DistributedContext) -> dict[str, Subnet]:
    """The sub-networks that this process measures.

    Those that share layer runs stay together, unless there are more processes than such groups. Large groups go with
    small ones. What is measured of a sub-network is so the very number that one process alone finds.
    """
    groups = [shared.subnets for shared in plan_shared_forwards(subnets.values())]
    if len(groups) < distributed.world_size:
        groups = [(subnet,) for subnet in subnets.values()]
    count, rank = distributed.world_size, distributed.rank
    dealt = groups[rank :: 2 * count] + groups[2 * count - 1 - rank :: 2 * count]
    mine = {subnet for group in dealt for subnet in group}
    return {name: subnet for name, subnet in subnets.items() if subnet in mine}


def _mean_validation_score(setup: PhaseSetup, subnets: dict[str, Subnet], distributed: DistributedContext) -> float:
    """How good the sub-networks are on what was kept back, on average."""
    scores = setup.validation_scores(subnets_of_rank(subnets, distributed))
    found = {name: score for part in distributed.all_gather_object(scores) for name, score in part.items()}
    return sum(found[name] for name in subnets) / len(subnets)


def _full_subnet(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if subnet == model.full}


def _full_depth_subnets(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if len(subnet.layers) == model.shape.layers}


def _rewire(model: ElasticModel, batches: Iterable[Iterable[WeightedMicroBatch]]) -> None:
    rewire(model, importance_from_micro_batches(model, batches))


_LABELS_OR_TEXT: frozenset[Supervision] = frozenset({"labels", "text"})

PHASES: dict[str, Phase] = {
    "finetune": SubnetPhase(
        help="the whole model on the task's labels: the teacher",
        defaults={"label_weight": 1.0},
        select_subnets=_full_subnet,
    ),
    "width": SubnetPhase(
        help="rewire once, then all widths at full depth, taught by the model as it was",
        supervision=_LABELS_OR_TEXT,
        defaults={"logit_weight": 1.0, "hidden_weight": 0.1},
        select_subnets=_full_depth_subnets,
        uses_teacher=True,
        prepare=_rewire,
    ),
    "depth": SubnetPhase(
        help="all widths at all depths, taught by the result of the width phase",
        supervision=_LABELS_OR_TEXT,
        defaults={"logit_weight": 1.0, "hidden_weight": 1.0, "teacher_width": "matched"},
        uses_teacher=True,
    ),
    "final": SubnetPhase(
        help="all widths at all depths on the true labels, without a teacher",
        supervision=_LABELS_OR_TEXT,
        defaults={"label_weight": 1.0},
    ),
    "gates": GatePhase(help="gates that choose each input's widths, with the encoder frozen", defaults={}),
    "mlm": SubnetPhase(
        help="the whole model on the hidden words of a text: the teacher of pre-training",
        defaults={"label_weight": 1.0},
        supervision=frozenset({"text"}),
        select_subnets=_full_subnet,
    ),
}


def check_supervision(phases: Iterable[str], supervision: Supervision) -> None:
    """Refuse phases that cannot learn from what a run has.

    Raises:
        ConfigError: naming the first, and those that can.
    """
    for name in phases:
        if supervision not in PHASES[name].supervision:
            able = ", ".join(other for other, phase in PHASES.items() if supervision in phase.supervision)
            verb = {"labels": "train", "text": "pretrain"}[supervision]
            raise ConfigError(f"phase {name!r} cannot learn from {supervision}; limbert {verb} has phases {able}")
