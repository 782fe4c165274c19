"""The training phases as values: which sub-networks a phase trains, and what happens before its first step.

Adding a phase adds an entry here; the trainer does not change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from limbert.core.subnet import Subnet
from limbert.method.importance import importance
from limbert.method.rewire import rewire
from limbert.model.elastic import ElasticModel

Batches = Callable[[], Any]  # labelled batches of the validation slice, on the model's device


@dataclass(frozen=True)
class Phase:
    """One stage of training.

    Attributes:
        help: one line for people.
        subnets: the sub-networks that it trains, by name, largest first.
        defaults: settings where a recipe says nothing.
        distils: whether it learns from a teacher: the model as it was when the phase began.
        prepare: what is done to the model before the first step, with batches of the validation slice.
    """

    help: str
    subnets: Callable[[ElasticModel], dict[str, Subnet]]
    defaults: Mapping[str, Any]
    distils: bool = False
    prepare: Callable[[ElasticModel, Batches], None] = field(default=lambda model, batches: None)


def _full(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if subnet == model.full}


def _full_depth(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if len(subnet.layers) == model.shape.layers}


def _all(model: ElasticModel) -> dict[str, Subnet]:
    return model.subnets()


def _rewire(model: ElasticModel, batches: Batches) -> None:
    rewire(model, importance(model, batches()))


PHASES: dict[str, Phase] = {
    "finetune": Phase(
        help="the whole model on the task's labels: the teacher",
        subnets=_full,
        defaults={"label_weight": 1.0},
    ),
    "width": Phase(
        help="rewire once, then all widths at full depth, taught by the fine-tuned model",
        subnets=_full_depth,
        defaults={"logit_weight": 1.0, "hidden_weight": 0.1},
        distils=True,
        prepare=_rewire,
    ),
    "depth": Phase(
        help="all widths at all depths, taught by the result of the width phase",
        subnets=_all,
        defaults={"logit_weight": 1.0, "hidden_weight": 1.0, "teacher_width": "matched"},
        distils=True,
    ),
    "final": Phase(
        help="all widths at all depths on the true labels, without a teacher",
        subnets=_all,
        defaults={"label_weight": 1.0},
    ),
}
