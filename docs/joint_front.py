"""Compare choosing size and precision together with size alone and with int8 alone: a Markdown table and a picture.

Usage: ``joint_front.py RUN [RUN ...] PICTURE.png`` after ``limbert profile RUN --runtime all --precision all``. Size
alone is a sub-network on torch in fp32, int8 alone the full model in the int8 runtimes; the joint front may contain
both. Latency is the median of one text, the metric that on the development set.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from limbert.core.units import format_quantity
from limbert.evaluation.choose import MeasuredSubnet, comparable_rows, latency_front, measured_subnets
from limbert.evaluation.hardware import describe_hardware
from limbert.report.picture import Colours, Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL = "1x1"
DROPS = (0.0, 0.005, 0.01, 0.02, 0.03)
KINDS: dict[str, Callable[[MeasuredSubnet], bool]] = {
    "size alone": lambda one: one.profile.setup.backend == "torch" and not one.is_policy,
    "int8 alone": lambda one: one.profile.subnet == FULL and one.profile.setup.precision == "int8",
    "size and precision": lambda one: True,
}
STYLES = {"size alone": ("link", "o"), "int8 alone": ("ink", "s"), "size and precision": ("accent", "o")}


def main(runs: list[str], picture: Path) -> None:
    print("| run | at most below the full model | " + " | ".join(KINDS) + " |")
    print("|---|---:|" + "---|" * len(KINDS))
    fronts = {}
    for run in runs:
        measured = measured_subnets(run, comparable_rows(run))
        fronts[Path(run).name] = {kind: latency_front([*filter(belongs, measured)]) for kind, belongs in KINDS.items()}
        (full,) = (one for one in measured if one.profile.subnet == FULL and KINDS["size alone"](one))
        for drop in DROPS:
            cells = [_cell(front, drop, full) for front in fronts[Path(run).name].values()]
            print(f"| {Path(run).name} | {100 * drop:g} points | {' | '.join(cells)} |")
        row = full.profile
        print(f"{run}: {row.setup}; {describe_hardware(row.hardware, device=row.setup.device)}", file=sys.stderr)
    alt_text = f"Metric against latency of {', '.join(KINDS)}"
    Picture("joint-front", alt_text, partial(_draw, fronts), (400 * len(runs) + 20, 400)).save_png(picture)


def _cell(front: list[MeasuredSubnet], drop: float, full: MeasuredSubnet) -> str:
    """The fastest of a front within a drop: speed-up over the full model in torch fp32, and what it is."""
    for one in front:
        if one.drop <= drop + 1e-9:
            setup, latency = one.profile.setup, one.profile.latency_p50_ms
            shown = format_quantity(latency / 1000, quantity_type="latency")
            speedup = full.profile.latency_p50_ms / latency
            return f"{speedup:.1f}x ({shown}): {one.profile.subnet} {setup.backend} {setup.precision}"
    return "none"


def _draw(fronts: dict[str, dict[str, list[MeasuredSubnet]]], figure: "Figure", colours: Colours) -> None:
    from matplotlib.ticker import LogLocator

    for axes, (run, by_kind) in zip(figure.subplots(1, len(fronts), squeeze=False)[0], fronts.items(), strict=True):
        axes.set(title=f"{run}: metric on dev", xlabel="ms per text, median", xscale="log")
        for kind, front in by_kind.items():
            colour, marker = STYLES[kind]
            x, y = [one.profile.latency_p50_ms for one in front], [100 * one.metric_value for one in front]
            axes.step(x, y, where="post", color=colours[colour], marker=marker, label=kind)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.legend(loc="upper left")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[-1].endswith(".png"):
        sys.exit("usage: joint_front.py RUN [RUN ...] PICTURE.png")
    main(sys.argv[1:-1], Path(sys.argv[-1]))
