"""``limbert choose``: the best sub-network under a budget, from what was measured."""

from pathlib import Path
from typing import Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.budget import MaxFlops, MaxLatency, MaxParams, MaxSize, MinMetric, profile_table
from limbert.errors import CheckpointError, ConfigError


def choose(
    run: Annotated[str, typer.Argument(help="elastic model with a profile", metavar="RUN")],
    max_latency: MaxLatency = None,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_size: MaxSize = None,
    min_metric: MinMetric = None,
    batch: Annotated[int | None, typer.Option(help="of the measurements (default: 1, or the smallest)")] = None,
    tokens: Annotated[int | None, typer.Option(help="of the measurements (default: the most)")] = None,
    backend: Annotated[
        str | None, typer.Option(help="of the measurements (default: where the full model is fastest)")
    ] = None,
    device_profile: Annotated[
        str | None,
        typer.Option(help="profile.jsonl from the machine to choose for (default: the run's own, this machine)"),
    ] = None,
    runners_up: Annotated[int, typer.Option(help="how many others are shown", min=0)] = 4,
    as_json: opt.AsJson = False,
) -> None:
    """Choose the sub-network with the highest metric that holds the given limits; with --min-metric alone the fastest.

    Costs are those that limbert profile measured, metrics those on the development set (results.jsonl). Nothing is run.
    Limits can be combined. The exit status is 1 if they cannot be met.

    Example: limbert choose runs/mrpc --max-latency 5ms --max-size 80MB

    Example: limbert choose runs/mrpc --min-metric 0.77 --device-profile phone/profile.jsonl
    """
    given = {
        "--max-latency": max_latency,
        "--max-params": max_params,
        "--max-flops": max_flops,
        "--max-size": max_size,
        "--min-metric": min_metric,
    }
    from limbert.cli import show
    from limbert.evaluation.choose import (
        ProfileFilter,
        comparable_rows,
        describe_unmet_budget,
        measured_subnets,
        parse_constraints,
        rank_within_budget,
    )
    from limbert.evaluation.hardware import describe_hardware

    limits = parse_constraints(given)
    if not limits:
        raise ConfigError(f"give at least one limit: {', '.join(given)}")
    if not Path(run).is_dir():
        raise CheckpointError(f"no model folder at {run}")
    rows = comparable_rows(run, ProfileFilter(backend, batch, tokens), profile_path=device_profile)
    known = measured_subnets(run, rows)
    if not known:
        raise ConfigError(f"no sub-network of the profile is in {run}/results.jsonl; measure those of this run")
    cell, machine = rows[0].setup, describe_hardware(rows[0].hardware, device=rows[0].setup.device)
    ranked = rank_within_budget(known, limits)
    if not ranked:
        raise ConfigError(f"{describe_unmet_budget(known, limits)} (measured: {cell}; {machine})")
    best, *others = ranked
    if as_json:
        values = [one.to_dict() for one in others[:runners_up]]
        show.print_json(
            {"choice": best.to_dict(), "runners_up": values, "meeting": len(ranked), "measured": len(known)}
        )
        return
    show.stdout.print(f"measured: {cell}; {machine}", highlight=False, soft_wrap=True)
    show.stdout.print(
        f"[bold]{best.profile.subnet}[/bold] ({best.measured_name}) is the best of {len(ranked)} sub-networks within the "
        f"limits, of {len(known)} measured",
        highlight=False,
        soft_wrap=True,
    )
    shown = [best, *others[:runners_up]]
    table = profile_table(
        [one.profile for one in shown], {one.profile.subnet: one for one in shown}, best=best.profile.subnet
    )
    show.stdout.print(table)
    show.stdout.print(
        f"limbert predict {run} --subnet {best.measured_name} --text ...", highlight=False, soft_wrap=True
    )
