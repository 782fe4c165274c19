"""The training phases by name. Adding one adds an entry here; nothing else lists them."""

from collections.abc import Iterable

from torch import Tensor

from limbert.core.subnet import Subnet
from limbert.method.importance import importance
from limbert.method.rewire import rewire
from limbert.model.elastic import ElasticModel
from limbert.run.gate_phase import GatePhase
from limbert.run.phase import Phase
from limbert.run.subnet_phase import SubnetPhase


def _full(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if subnet == model.full}


def _full_depth(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if len(subnet.layers) == model.shape.layers}


def _rewire(model: ElasticModel, batches: Iterable[dict[str, Tensor]]) -> None:
    rewire(model, importance(model, batches))


PHASES: dict[str, Phase] = {
    "finetune": SubnetPhase(
        help="the whole model on the task's labels: the teacher",
        defaults={"label_weight": 1.0},
        subnets=_full,
    ),
    "width": SubnetPhase(
        help="rewire once, then all widths at full depth, taught by the fine-tuned model",
        defaults={"logit_weight": 1.0, "hidden_weight": 0.1},
        subnets=_full_depth,
        distils=True,
        prepare=_rewire,
    ),
    "depth": SubnetPhase(
        help="all widths at all depths, taught by the result of the width phase",
        defaults={"logit_weight": 1.0, "hidden_weight": 1.0, "teacher_width": "matched"},
        distils=True,
    ),
    "final": SubnetPhase(
        help="all widths at all depths on the true labels, without a teacher",
        defaults={"label_weight": 1.0},
    ),
    "gates": GatePhase(help="gates that choose each input's widths, with the encoder frozen", defaults={}),
}
