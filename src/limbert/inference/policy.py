"""Policies: which sub-network runs, as data that checkpoints keep, and as the plan that the engine executes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from limbert.core.config import TaskType
from limbert.core.space import is_width_depth_name, parse_width_depth
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.deprecation import RenamedAttribute
from limbert.errors import ConfigError
from limbert.method.calibration import temperature_of
from limbert.method.early_exit import ExitRule, ExitRuleName
from limbert.model.checkpoint import update_record
from limbert.model.elastic import ElasticModel

POLICY_FORMATS = "static:WIDTHxDEPTH, width, depth, width+depth, cascade:WIDTHxDEPTH,WIDTHxDEPTH"
_DYNAMIC_NAMES = ("width", "depth", "width+depth")
_RECORD_KEY = "operating_points"  # in limbert.json


@dataclass(frozen=True)
class Policy:
    """Which part of the model runs: one sub-network for all inputs, or what gates and exits choose for each input.

    Attributes:
        subnet: the sub-network of a static policy, ``WIDTHxDEPTH`` or a name from a search; None for a dynamic policy.
        gates: whether width gates choose the width of each group of layers.
        widths: with gates, the width of each of their choices (None: as trained); without, the one width of all layers
            (None: full).
        exits: when inputs exit early, of a cascade when a prediction is final; None runs all layers.
        temperatures: by which the logits at each exit, in order, and after the last layer are divided, of a cascade
            those of each sub-network; None: those of the sub-networks that end there, or 1.0 where gates choose the
            widths.
        cascade: sub-networks, cheapest first: an input whose prediction is not final runs again in the next.

    Raises:
        ConfigError: for a combination without meaning, or a name that no sub-network can have.
    """

    subnet: str | None = None
    gates: bool = False
    widths: tuple[float, ...] | None = None
    exits: ExitRule | None = None
    temperatures: tuple[float, ...] | None = None
    cascade: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if any(temperature <= 0 for temperature in self.temperatures or ()):
            raise ConfigError(f"temperatures are {self.temperatures}; they must be above 0")
        if self.cascade is not None:
            self._check_cascade(self.cascade)
        elif self.subnet is None:
            if not self.gates and self.exits is None:
                raise ConfigError(f"a policy needs a sub-network, gates or exits; write one of {POLICY_FORMATS}")
        elif self.gates or self.exits or self.widths:
            raise ConfigError(f"policy static:{self.subnet} is one sub-network; widths and exits need a dynamic policy")
        else:
            _check_subnet_name(self.subnet)

    def _check_cascade(self, cascade: tuple[str, ...]) -> None:
        for name in cascade:
            _check_subnet_name(name)
        if len(cascade) < 2 or self.subnet or self.gates or self.widths:
            raise ConfigError(f"policy {self.name} needs two sub-networks or more, and has no gates and widths")
        if self.exits is None or self.exits.name == "patience":
            raise ConfigError(f"policy {self.name} needs an exit threshold of the rule entropy or confidence")
        if self.temperatures and len(self.temperatures) != len(cascade):
            raise ConfigError(f"policy {self.name} has {len(self.temperatures)} temperatures; it needs {len(cascade)}")

    @property
    def rest(self) -> "Policy | None":
        """What runs in a cascade after its first sub-network."""
        if self.cascade is None:
            return None
        temperatures = self.temperatures and self.temperatures[1:]
        if len(self.cascade) == 2:
            return Policy(subnet=self.cascade[1], temperatures=temperatures)
        return replace(self, cascade=self.cascade[1:], temperatures=temperatures)

    @property
    def name(self) -> str:
        """``static:0.5x0.75``, ``width``, ``depth``, ``width+depth`` or ``cascade:0.25x0.5,1x1``."""
        if self.cascade is not None:
            return f"cascade:{','.join(self.cascade)}"
        if self.subnet is not None:
            return f"static:{self.subnet}"
        return "+".join(part for part, used in (("width", self.gates), ("depth", self.exits)) if used)

    def __str__(self) -> str:
        """The name with widths and exit threshold: ``depth; entropy 0.15``."""
        parts = [self.name]
        if self.widths:
            parts.append(f"widths {_format_widths(self.widths)}")
        if self.exits:
            parts.append(f"{self.exits.name} {self.exits.threshold:g}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; `from_dict` reads them."""
        exits = {"rule": self.exits.name, "threshold": self.exits.threshold} if self.exits else None
        values = {"policy": self.name, "widths": None if self.widths is None else list(self.widths), "exits": exits}
        return values | ({"temperatures": list(self.temperatures)} if self.temperatures else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The policy that `to_dict` wrote."""
        try:
            exits = values.get("exits")
            rule = ExitRule(exits["rule"], exits["threshold"]) if exits else None
            widths = values.get("widths")
            policy = cls.from_name(values["policy"], widths=tuple(widths) if widths else None, exits=rule)
            return replace(policy, temperatures=tuple(values.get("temperatures", ())) or None)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"a saved policy needs policy, widths and exits, got {values!r}") from error

    @classmethod
    def from_name(cls, name: str, *, widths: tuple[float, ...] | None = None, exits: ExitRule | None = None) -> Self:
        """A policy by its name, one of `POLICY_FORMATS`; ``exits`` are needed by ``depth`` and ``width+depth``."""
        if name.startswith("static:"):
            return cls(subnet=name.removeprefix("static:"), widths=widths, exits=exits)
        if name.startswith("cascade:"):
            return cls(cascade=tuple(name.removeprefix("cascade:").split(",")), widths=widths, exits=exits)
        if name not in _DYNAMIC_NAMES:
            raise ConfigError(f"unknown policy {name!r}; write one of {POLICY_FORMATS}")
        if ("depth" in name) != (exits is not None):
            if exits is not None:
                raise ConfigError(f"policy {name!r} has no exits; remove --exit-threshold")
            example = "such as --exit-threshold 0.15 (Python: exits=ExitRule(...))"
            raise ConfigError(f"policy {name!r} needs an exit threshold, {example}")
        return cls(gates="width" in name, widths=widths, exits=exits)

    named = RenamedAttribute("from_name")


@dataclass(frozen=True)
class OperatingPoint:
    """A policy with its metric and FLOPs on the validation split when it was chosen."""

    policy: Policy
    metric: str  # name of the metric
    value: float  # of the metric
    flops_share: float  # mean floating-point operations per example, as a fraction of the full model's

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; `from_dict` reads them."""
        return self.policy.to_dict() | {"validation": {self.metric: self.value}, "flops_share": self.flops_share}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The operating point that `to_dict` wrote."""
        try:
            ((metric, value),) = values["validation"].items()
            return cls(Policy.from_dict(values), metric, value, values["flops_share"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"cannot read the saved operating point {values!r}") from error


def operating_points(record: Mapping[str, Any]) -> dict[str, OperatingPoint]:
    """The operating points in a checkpoint's ``limbert.json``, by name."""
    return {name: OperatingPoint.from_dict(values) for name, values in record.get(_RECORD_KEY, {}).items()}


def save_operating_points(run_dir: str | Path, points: Mapping[str, OperatingPoint]) -> None:
    """Write operating points into the run's ``limbert.json``; everything else in it stays."""
    saved = {name: point.to_dict() for name, point in points.items()}
    update_record(run_dir, lambda record: record.update({_RECORD_KEY: saved}))


def _check_subnet_name(name: str) -> None:
    if not is_width_depth_name(name) and not name.startswith("found-"):
        raise ConfigError(
            f"cannot read sub-network {name!r}; write WIDTHxDEPTH, for example 0.5x0.75, or a name that limbert search "
            f"found; for an operating point use --policy {name} (Python: policy={name!r})"
        )


def default_exit_rule(task_type: TaskType) -> ExitRuleName:
    """The exit rule that fits the task type."""
    return "patience" if task_type == "regression" else "entropy"


def named_policy(
    name: str,
    record: Mapping[str, Any],
    *,
    task_type: TaskType = "classification",
    widths: Sequence[float] | None = None,
    exit_threshold: float | None = None,
    exit_rule: str | None = None,
) -> Policy:
    """A policy by name: one of `POLICY_FORMATS`, or an operating point of the checkpoint with this ``limbert.json``.

    The task type determines the default exit rule. Operating points have their own widths and exits; ``depth`` and
    ``width+depth`` need an exit threshold.
    """
    if name.startswith(("static:", "cascade:")) or name in _DYNAMIC_NAMES:
        if exit_rule and exit_threshold is None:
            raise ConfigError(f"exit rule {exit_rule!r} needs an exit threshold (--exit-threshold)")
        rule = exit_rule or default_exit_rule(task_type)
        exits = None if exit_threshold is None else ExitRule(rule, exit_threshold)  # type: ignore[arg-type]  # checks it
        return Policy.from_name(name, widths=tuple(widths) if widths else None, exits=exits)
    points = operating_points(record)
    if name not in points:
        known = ", ".join(points) or "none yet, run limbert tune"
        raise ConfigError(
            f"unknown policy {name!r}; write {POLICY_FORMATS}, or an operating point of this model: {known}"
        )
    if widths or exit_rule or exit_threshold is not None:
        raise ConfigError(f"operating point {name!r} has its own widths and exit threshold; leave those settings out")
    return points[name].policy


@dataclass(frozen=True)
class WidthOption:
    """A width that layers can run at: the fraction, and its heads and neurons."""

    width: float
    heads: int
    neurons: int


@dataclass(frozen=True)
class ExecutionPlan:
    """A policy resolved for one model; the engine executes it without further choices of its own."""

    layers: tuple[int, ...]  # indices of the layers that run: all of them unless the policy is static
    options: tuple[WidthOption, ...]  # the widths that can run; examples start at the first
    gate_before_layer: Mapping[int, int]  # the index of the gate before a layer, by layer
    gate_options: tuple[int, ...]  # for each choice of a gate, the index of its option; empty without gates
    exit_layers: frozenset[int]  # the numbers of layers after which examples may exit
    exit_rule: ExitRule | None  # when they exit
    static_options: Mapping[int, int] = field(default_factory=dict)  # the option of each layer, if static
    temperatures: Mapping[int, float] = field(default_factory=dict)  # of the logits, by the number of layers run


def resolve_policy(policy: Policy, model: ElasticModel, *, task_type: TaskType) -> ExecutionPlan:
    """Check a policy against a model and make its execution plan, of a cascade that of its first sub-network."""
    if policy.subnet is not None:
        return _static_plan(model, policy.subnet, policy.temperatures)
    reject_token_level_task(task_type, f"policy {policy.name}")
    layers = tuple(range(model.shape.layers))
    exit_layers: frozenset[int] = frozenset()
    if policy.cascade is not None and policy.exits is not None:
        policy.exits.check(task_type)
        plans = [_static_plan(model, name, policy.temperatures) for name in policy.cascade]  # refuses what cannot run
        return plans[0]
    if policy.exits is not None:
        policy.exits.check(task_type)
        exit_layers = _exit_layers(model)
    temperatures = _temperatures(policy, model, exit_layers)
    if not policy.gates:
        widths = policy.widths or (1.0,)
        if len(widths) != 1:
            raise ConfigError(f"policy depth runs all layers at one width, got {len(widths)}: {_format_widths(widths)}")
        option = _width_option(model, widths[0])
        return ExecutionPlan(layers, (option,), {}, (), exit_layers, policy.exits, temperatures=temperatures)
    if model.gates is None:
        raise ConfigError("this model has no width gates; train them: limbert train --phases gates --model RUN")
    widths = policy.widths or model.gates.widths
    if len(widths) != len(model.gates.widths):
        raise ConfigError(
            f"{len(widths)} widths given ({_format_widths(widths)}); the gates have {len(model.gates.widths)} choices"
        )
    options = tuple(dict.fromkeys(_width_option(model, width) for width in widths))
    return ExecutionPlan(
        layers,
        options,
        {layer: gate for gate, layer in enumerate(model.gates.gate_layer_indices(model.shape.layers))},
        tuple(options.index(_width_option(model, width)) for width in widths),
        exit_layers,
        policy.exits,
        temperatures=temperatures,
    )


def reject_token_level_task(task_type: TaskType, feature: str) -> None:
    """Refuse a feature for tasks with predictions at tokens: policies choose one width and depth per text."""
    if TASK_TYPE_SPECS[task_type].token_level:
        raise ConfigError(
            f"{feature} chooses a width and depth for each prediction, but in {task_type} all predictions of a text "
            "come from one pass; use one sub-network for all texts: --subnet WIDTHxDEPTH"
        )


def _static_plan(model: ElasticModel, name: str, temperatures: tuple[float, ...] | None = None) -> ExecutionPlan:
    subnet, width = model.subnet(name), parse_width_depth(name)[0] if is_width_depth_name(name) else None
    model.check(subnet)
    by_layer = {
        layer: WidthOption(heads / model.shape.heads if width is None else width, heads, neurons)
        for layer, (heads, neurons) in subnet.layer_widths().items()
    }
    options = tuple(dict.fromkeys(by_layer.values()))
    static_options = {layer: options.index(option) for layer, option in by_layer.items()}
    temperature = temperatures[0] if temperatures else temperature_of(model, subnet)
    by_layers = {len(subnet.layers): temperature}
    return ExecutionPlan(subnet.layers, options, {}, (), frozenset(), None, static_options, by_layers)


def _temperatures(policy: Policy, model: ElasticModel, exit_layers: Iterable[int]) -> dict[int, float]:
    """The temperatures of a dynamic policy by the number of layers run."""
    stops = [*sorted(exit_layers), model.shape.layers]
    if policy.temperatures is not None:
        if len(policy.temperatures) != len(stops):
            raise ConfigError(f"the policy has {len(policy.temperatures)} temperatures; this model needs {len(stops)}")
        return dict(zip(stops, policy.temperatures, strict=True))
    if policy.gates:
        return {}
    option = _width_option(model, (policy.widths or (1.0,))[0])
    subnets = {stop: Subnet(tuple(range(stop)), (option.heads,) * stop, (option.neurons,) * stop) for stop in stops}
    return {stop: temperature_of(model, subnet) for stop, subnet in subnets.items()}


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
    exit_layers = frozenset(depths - {model.shape.layers})
    if not exit_layers:
        raise ConfigError("this model was trained at full depth only, so it has no exits; train more depths")
    return exit_layers


def _format_widths(widths: tuple[float, ...]) -> str:
    return ", ".join(f"{width:g}" for width in widths)
