"""Options that name a policy."""

from typing import Annotated

import typer

from limbert.errors import ConfigError

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
    float | None, typer.Option("--exit-threshold", help="exits: the threshold of the exit rule at which inputs exit")
]
ExitRuleOption = Annotated[
    str | None,
    typer.Option("--exit-rule", help="entropy, confidence or patience (default: entropy; for regression patience)"),
]


def check_policy_options(
    policy: str | None, subnets: object, widths: str | None, exit_threshold: float | None, exit_rule: str | None
) -> None:
    """Raise ConfigError for a policy beside sub-networks, or policy settings without a policy."""
    if policy is None and (widths or exit_threshold is not None or exit_rule):
        raise ConfigError("--widths, --exit-threshold and --exit-rule need a --policy")
    if policy is not None and subnets:
        raise ConfigError("give either --subnet or --policy; one sub-network is also --policy static:WIDTHxDEPTH")
