"""``limbert choose``: the best sub-network within a budget, from measured costs and metrics."""

from typing import Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.budget import MaxFlops, MaxLatency, MaxParams, MaxSize, MinMetric, profile_table


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
    """Choose the sub-network with the highest metric within the given limits; with --min-metric alone the fastest.

    Costs are those that limbert profile measured, metrics those on the development set (results.jsonl). Nothing is run.
    Limits can be combined. The exit status is 1 if they cannot be met.

    Example: limbert choose runs/mrpc --max-latency 5ms --max-size 80MB

    Example: limbert choose runs/mrpc --min-metric 0.77 --device-profile phone/profile.jsonl
    """
    from limbert.cli import show
    from limbert.evaluation import choose as choosing
    from limbert.evaluation.hardware import describe_hardware

    choice = choosing.choose(
        run,
        max_latency=max_latency,
        max_params=max_params,
        max_flops=max_flops,
        max_size=max_size,
        min_metric=min_metric,
        backend=backend,
        batch=batch,
        tokens=tokens,
        profile_path=device_profile,
    )
    best, shown = choice.best, choice.ranked[: 1 + runners_up]
    if as_json:
        show.print_json(
            {
                "choice": best.to_dict(),
                "runners_up": [subnet.to_dict() for subnet in shown[1:]],
                "meeting": len(choice.ranked),
                "measured": choice.num_measured,
            }
        )
        return
    setup, subnet = best.profile.setup, best.profile.subnet
    machine = describe_hardware(best.profile.hardware, device=setup.device)
    show.stdout.print(f"Measured: {setup}; {machine}", highlight=False, soft_wrap=True)
    show.stdout.print(
        f"[bold]{subnet}[/bold] ({best.measured_name}) is the best of {len(choice.ranked)} sub-networks within the "
        f"limits, of {choice.num_measured} measured",
        highlight=False,
        soft_wrap=True,
    )
    show.stdout.print(
        profile_table([other.profile for other in shown], {one.profile.subnet: one for one in shown}, best=subnet)
    )
    formats = {"onnxruntime": "onnx", "openvino": "openvino"}
    next_command = f"limbert predict {run} --subnet {best.measured_name} --text ..."
    if setup.backend in formats:  # the latency is that of this runtime, not of predict's torch
        next_command = f"limbert export {run} --subnet {subnet} --format {formats[setup.backend]} --output ..."
    show.stdout.print(f"Next: {next_command}", highlight=False, soft_wrap=True)
