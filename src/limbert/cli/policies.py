"""Options that say which policy runs, and how they become one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.core.config import TaskType
    from limbert.inference.policy import Policy
    from limbert.method.early_exit import ExitRuleName

PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="static:WIDTHxDEPTH, width (gates), depth (exits), width+depth, or an operating point such as balanced",
    ),
]
Widths = Annotated[
    str | None,
    typer.Option("--widths", help="with gates: the width of each choice, such as 0.5,0.75,0.75,0.75; else one width"),
]
ExitThreshold = Annotated[
    float | None, typer.Option("--exit-threshold", help="exits: where the exit rule lets an example leave")
]
ExitRuleOption = Annotated[
    str | None,
    typer.Option("--exit-rule", help="entropy, confidence or patience (default: entropy; for regression patience)"),
]


def default_exit_rule(task_type: "TaskType") -> "ExitRuleName":
    """The rule where nobody names one."""
    return "patience" if task_type == "regression" else "entropy"


def policy_from_options(
    name: str,
    *,
    record: Mapping[str, Any],
    task_type: "TaskType",
    widths: str | None,
    exit_threshold: float | None,
    exit_rule: str | None,
) -> "Policy":
    """The policy that the command line describes.

    Raises:
        ConfigError: for an unknown name, or settings that do not go with it.
    """
    from limbert.inference.policy import Policy, operating_point_policy
    from limbert.method.early_exit import ExitRule

    numbers = opt.parse_floats(widths, "--widths")
    if not name.startswith("static:") and name not in ("width", "depth", "width+depth"):
        if numbers or exit_threshold is not None or exit_rule:
            raise ConfigError(f"policy {name!r} has its widths and threshold; --widths and --exit-... are for others")
        return operating_point_policy(record, name)
    if exit_rule and exit_threshold is None:
        raise ConfigError(f"exit rule {exit_rule!r} needs an --exit-threshold")
    rule = None
    if exit_threshold is not None:
        rule = ExitRule(exit_rule or default_exit_rule(task_type), exit_threshold)  # type: ignore[arg-type]
    return Policy.from_name(name, widths=numbers, exits=rule)
