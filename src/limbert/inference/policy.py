"""How the size is chosen: as data that people write and checkpoints keep, and as the plan that the engine executes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from limbert.core.config import TaskType
from limbert.core.space import is_width_depth_name, parse_width_depth
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.deprecation import RenamedAttribute
from limbert.errors import ConfigError
from limbert.method.early_exit import ExitRule
from limbert.model.checkpoint import update_record
from limbert.model.elastic import ElasticModel

POLICY_FORMATS = "static:WIDTHxDEPTH, width, depth, width+depth"


@dataclass(frozen=True)
class Policy:
    """Which part of the model runs: one size for all inputs, or what gates and exits choose for each.

    Attributes:
        subnet: the one sub-network of a static policy; None for a dynamic one.
        gates: whether width gates choose the width of each group of layers.
        widths: with gates, the width that each of their choices runs at (None: as trained); without, the one width of
            all layers (None: full).
        exits: when inputs leave early; None runs all layers.

    Raises:
        ConfigError: for a combination that means nothing.
    """

    subnet: str | None = None
    gates: bool = False
    widths: tuple[float, ...] | None = None
    exits: ExitRule | None = None

    def __post_init__(self) -> None:
        if self.subnet is not None and (self.gates or self.exits or self.widths):
            raise ConfigError(f"policy static:{self.subnet} has a fixed size; widths and exits belong to dynamic ones")
        if self.subnet is None and not self.gates and self.exits is None:
            raise ConfigError(f"a policy needs a sub-network, gates or exits; write one of {POLICY_FORMATS}")

    @property
    def name(self) -> str:
        """``static:0.5x0.75``, ``width``, ``depth`` or ``width+depth``."""
        if self.subnet is not None:
            return f"static:{self.subnet}"
        return "+".join(part for part, used in (("width", self.gates), ("depth", self.exits)) if used)

    def __str__(self) -> str:
        """The name with its numbers, for people."""
        parts = [self.name]
        if self.widths:
            parts.append("widths " + ", ".join(f"{width:g}" for width in self.widths))
        if self.exits:
            parts.append(f"{self.exits.name} {self.exits.threshold:g}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        exits = {"rule": self.exits.name, "threshold": self.exits.threshold} if self.exits else None
        return {
            "policy": self.name,
            "widths": None if self.widths is None else list(self.widths),
            "exits": exits,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The policy that `to_dict` wrote.

        Raises:
            ConfigError: for values that are none.
        """
        try:
            exits = values.get("exits")
            rule = ExitRule(exits["rule"], exits["threshold"]) if exits else None
            widths = values.get("widths")
            return cls.from_name(values["policy"], widths=tuple(widths) if widths else None, exits=rule)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"a saved policy needs policy, widths and exits, got {values!r}") from error

    @classmethod
    def from_name(cls, name: str, *, widths: tuple[float, ...] | None = None, exits: ExitRule | None = None) -> Self:
        """A policy by the name of its kind.

        Args:
            name: ``static:WIDTHxDEPTH``, ``width``, ``depth`` or ``width+depth``.
            widths: as the attribute.
            exits: needed by ``depth`` and ``width+depth``.

        Raises:
            ConfigError: for an unknown name, or settings that do not go with it.
        """
        if name.startswith("static:"):
            return cls(subnet=name.removeprefix("static:"), widths=widths, exits=exits)
        if name not in ("width", "depth", "width+depth"):
            raise ConfigError(f"unknown policy {name!r}; write one of {POLICY_FORMATS}")
        if ("depth" in name) != (exits is not None):
            needs = "needs an exit threshold" if exits is None else "has no exits: leave the exit threshold out"
            raise ConfigError(f"policy {name!r} {needs}")
        return cls(gates="width" in name, widths=widths, exits=exits)

    named = RenamedAttribute("from_name")


@dataclass(frozen=True)
class WidthOption:
    """A width that layers may run at."""

    width: float
    heads: int
    neurons: int


@dataclass(frozen=True)
class ExecutionPlan:
    """A policy resolved for one model: what the engine executes without any further choice of its own.

    Attributes:
        layers: those that run, as indices into the full stack: all of them but for a static policy.
        options: the widths that may run; the first is where everything starts.
        gates: the gate that is asked before each layer, by the layer.
        choices: for each choice of a gate, the index of its option; empty without gates.
        ramps: the numbers of layers after which examples may leave.
        exits: when they leave.
        fixed: the option that each layer runs at, by the layer, where the policy is static.
    """

    layers: tuple[int, ...]
    options: tuple[WidthOption, ...]
    gate_before_layer: Mapping[int, int]
    gate_options: tuple[int, ...]
    exit_layers: frozenset[int]
    exit_rule: ExitRule | None
    static_options: Mapping[int, int] = field(default_factory=dict)

    @property
    def num_gate_choices(self) -> int:
        """Widths that each gate chooses among; 0 without gates."""
        return len(self.gate_options)


def resolve_policy(policy: Policy, model: ElasticModel, *, task_type: TaskType) -> ExecutionPlan:
    """Check a policy against a model and work out what it means for it.

    Raises:
        ConfigError: if the model has no gates, too few or too many widths are given, the exit rule does not fit the
            task, or the model's depths are no exits of each other.
        SubnetError: for a width that keeps no head.
    """
    if policy.subnet is not None:
        return _static_plan(model, policy.subnet)
    reject_token_level_task(task_type, f"policy {policy.name}")
    every = tuple(range(model.shape.layers))
    ramps: frozenset[int] = frozenset()
    if policy.exits is not None:
        policy.exits.check(task_type)
        ramps = _exit_layers(model)
    if not policy.gates:
        widths = policy.widths or (1.0,)
        if len(widths) != 1:
            raise ConfigError(f"policy depth runs all layers at one width, got {len(widths)}: {_format_widths(widths)}")
        return ExecutionPlan(every, (_width_option(model, widths[0]),), {}, (), ramps, policy.exits)
    if model.gates is None:
        raise ConfigError("this model has no width gates; train them: limbert train --phases gates --model RUN")
    widths = policy.widths or model.gates.widths
    if len(widths) != len(model.gates.widths):
        raise ConfigError(
            f"{len(widths)} widths given ({_format_widths(widths)}); the gates have {len(model.gates.widths)} choices"
        )
    options = tuple(dict.fromkeys(_width_option(model, width) for width in widths))
    places = model.gates.gate_layer_indices(model.shape.layers)
    return ExecutionPlan(
        every,
        options,
        {layer: gate for gate, layer in enumerate(places)},
        tuple(options.index(_width_option(model, width)) for width in widths),
        ramps,
        policy.exits,
    )


def reject_token_level_task(task_type: TaskType, feature: str) -> None:
    """Raise ConfigError for a task whose answers stand at tokens: a policy chooses one size for one answer.

    Args:
        kind: of the task.
        who: asks for a policy, in words.
    """
    if TASK_TYPE_SPECS[task_type].token_level:
        raise ConfigError(
            f"{feature} chooses a size for each answer, and in {task_type} all answers of a text run together; "
            "run one sub-network for all texts: --subnet WIDTHxDEPTH"
        )


def _static_plan(model: ElasticModel, name: str) -> ExecutionPlan:
    subnet, width = model.subnet(name), parse_width_depth(name)[0] if is_width_depth_name(name) else None
    model.check(subnet)
    at = {
        layer: WidthOption(heads / model.shape.heads if width is None else width, heads, neurons)
        for layer, (heads, neurons) in subnet.layer_widths().items()
    }
    options = tuple(dict.fromkeys(at.values()))
    fixed = {layer: options.index(option) for layer, option in at.items()}
    return ExecutionPlan(subnet.layers, options, {}, (), frozenset(), None, fixed)


def _width_option(model: ElasticModel, width: float) -> WidthOption:
    subnet = Subnet.uniform(model.shape, width=width)
    return WidthOption(width, subnet.heads[0], subnet.neurons[0])


def _exit_layers(model: ElasticModel) -> frozenset[int]:
    if model.space.layers != "first":
        raise ConfigError(
            f"this model was trained with layers {model.space.layers!r}; exits need depths that keep the first layers: "
            "limbert train --layers first"
        )
    depths = {len(Subnet.uniform(model.shape, depth=depth, layers="first").layers) for depth in model.space.depths}
    ramps = frozenset(depths - {model.shape.layers})
    if not ramps:
        raise ConfigError("this model was trained at full depth only, so that it has no exits; train more depths")
    return ramps


def _format_widths(widths: tuple[float, ...]) -> str:
    return ", ".join(f"{width:g}" for width in widths)


_RECORD_KEY = "operating_points"


@dataclass(frozen=True)
class OperatingPoint:
    """A policy, and what it reached on the validation slice when it was chosen.

    Attributes:
        policy: what runs.
        metric: name of the metric.
        value: of the metric, on the validation slice.
        flops: mean floating-point operations an example, as a share of the full model's.
    """

    policy: Policy
    metric: str
    value: float
    flops_share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return self.policy.to_dict() | {"validation": {self.metric: self.value}, "flops_share": self.flops_share}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The point that `to_dict` wrote.

        Raises:
            ConfigError: for values that are none.
        """
        try:
            ((metric, value),) = values["validation"].items()
            return cls(Policy.from_dict(values), metric, value, values["flops_share"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"cannot read the saved operating point {values!r}") from error


def operating_points(record: Mapping[str, Any]) -> dict[str, OperatingPoint]:
    """The points in a checkpoint's record, by name."""
    return {name: OperatingPoint.from_dict(values) for name, values in record.get(_RECORD_KEY, {}).items()}


def operating_point_policy(record: Mapping[str, Any], name: str) -> Policy:
    """A policy by the name of an operating point.

    Raises:
        ConfigError: if the checkpoint has no point of this name.
    """
    points = operating_points(record)
    if name not in points:
        known = ", ".join(points) or "none yet, limbert tune makes some"
        raise ConfigError(
            f"unknown policy {name!r}; write {POLICY_FORMATS}, or an operating point of this model: {known}"
        )
    return points[name].policy


def save_operating_points(run_dir: str | Path, points: Mapping[str, OperatingPoint]) -> None:
    """Write the points into the run's ``limbert.json``; all else in it stays.

    Raises:
        CheckpointError: if the run is no elastic checkpoint on this machine.
        StorageError: if the file cannot be written; the old one stays.
    """
    saved = {name: point.to_dict() for name, point in points.items()}
    update_record(run_dir, lambda record: record.update({_RECORD_KEY: saved}))
