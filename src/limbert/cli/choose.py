"""``limbert choose``: the best sub-network or operating point, runtime and precision within a budget."""

from typing import Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.cli.profile import print_profile_table
from limbert.core.verb_config import MeasurementConfig

_EXPORT_FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}


@config_options(limits=opt.BUDGET, measurements=ConfigOptions(MeasurementConfig))
def choose(
    run: Annotated[str, typer.Argument(help="elastic model with a profile", metavar="RUN")],
    limits: dict[str, Any],
    measurements: MeasurementConfig,
    runners_up: Annotated[int, typer.Option(help="how many others are shown", min=0, metavar="N")] = 4,
    as_json: opt.AsJson = False,
) -> None:
    """Choose the highest metric within the given limits; with --min-metric or --max-drop alone the fastest.

    Sub-networks compete in every runtime and precision that limbert profile measured, with the operating points of
    limbert tune (on torch); metrics are those on the development set (results.jsonl, policies.jsonl), less what bf16 or
    int8 lost there. Nothing is run. Limits can be combined. The exit status is 1 if they cannot be met. The second
    table is the Pareto front of latency and metric.

    \b
    Example: limbert choose runs/mrpc --max-drop 1
    Example: limbert choose runs/mrpc --max-latency 5ms --max-size 80MB
    Example: limbert choose runs/mrpc --min-metric 0.77 --device-profile phone/profile.jsonl
    """
    from limbert.cli import console
    from limbert.evaluation import choose as choosing
    from limbert.evaluation.hardware import describe_hardware

    choice = choosing.choose(run, **limits, **vars(measurements))
    best, shown = choice.best, choice.ranked[: 1 + runners_up]
    if as_json:
        others = [subnet.to_dict() for subnet in shown[1:]]
        counts = {"meeting": len(choice.ranked), "measured": choice.num_measured}
        front = [subnet.to_dict() for subnet in choice.front]
        console.print_json({"choice": best.to_dict(), "runners_up": others, "front": front, **counts})
        return
    setup, subnet = best.profile.setup, best.profile.subnet
    console.say(f"Measured: {setup}; {describe_hardware(best.profile.hardware, device=setup.device)}")
    console.say(
        f"{subnet} on {setup.backend} in {setup.precision} ({best.measured_name}) is the best of {len(choice.ranked)} "
        f"measurements within the limits, of {choice.num_measured}"
    )
    print_profile_table([other.profile for other in shown], shown, bold=[0])
    console.say("Pareto front of latency and metric, within the limits or not:")
    bold = [index for index, other in enumerate(choice.front) if other is best]
    print_profile_table([other.profile for other in choice.front], choice.front, bold=bold)
    if best.is_policy:
        console.say(f"Next: limbert predict {run} --policy {subnet} --text ...")
        console.say(f"      limbert serve {run} --policy {subnet}")
        return
    if setup.backend not in _EXPORT_FORMATS:
        console.say(f"Next: limbert predict {run} --subnet {subnet} --text ...")
        return
    runtime = f"--runtime {setup.backend} --precision {setup.precision}"  # that its latency is of
    console.say(f"Next: limbert predict {run} --subnet {subnet} {runtime} --text ...")
    console.say(f"      limbert serve {run} --policy static:{subnet} {runtime}")
    int8 = " --int8" * (setup.precision == "int8")
    export_format = _EXPORT_FORMATS[setup.backend]
    console.say(f"      limbert export {run} --subnet {subnet} --format {export_format}{int8} --output ...")
