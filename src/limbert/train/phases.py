"""The training phases by name. Adding one adds an entry here; nothing else lists them."""

from collections.abc import Iterable

from limbert.core.subnet import Subnet
from limbert.errors import ConfigError
from limbert.method.importance import Piece, importance_in_pieces
from limbert.method.rewiring import rewire
from limbert.model.elastic import ElasticModel
from limbert.train.gates import GatePhase
from limbert.train.context import Material, Phase
from limbert.run.subnet_phase import SubnetPhase


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
