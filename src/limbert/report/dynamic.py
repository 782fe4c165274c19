"""Section: the operating points: a table, the search they were chosen from, and how each spends its layers."""

from dataclasses import dataclass
from typing import Any

from limbert.report.costs import is_same_set, width_colour
from limbert.report.drawing import Drawing, Shape
from limbert.report.numbers import digits, listed, metric_text, metric_unit, several, share_text
from limbert.report.picture import Picture, file_name
from limbert.report.read import RunData
from limbert.report.scatter import Point, scatter
from limbert.report.spending import exit_histogram, layer_widths

_LOOKS: dict[str, tuple[Shape, str, str]] = {  # by the kind of policy
    "static": ("circle", "ink", "one size for all"),
    "width": ("square", "width-2", "width gates"),
    "depth": ("triangle", "heat-4", "exits"),
    "width+depth": ("diamond", "width-5", "gates and exits"),
}


@dataclass(frozen=True)
class Spending:
    """How one operating point spends its layers."""

    name: str
    policy: str
    data: str
    pictures: list[Picture]


def point_rows(data: RunData) -> list[dict[str, str]]:
    """The table of the operating points, as text."""
    rows = []
    for name, point in data.points.items():
        row = {
            "name": name,
            "policy": str(point.policy),
            "validation": metric_text(point.value),
            "validation_flops": share_text(point.flops),
            "development": "",
            "development_flops": "",
            "time": "",
            "batch": "",
            "static": "",
            "static_name": "",
        }
        dev = data.spent_by(name, "development")
        if dev is not None:
            row["development"] = metric_text(data.value(dev))
            row["development_flops"] = share_text(dev["flops_mean"] / dev["flops_full"])
            row["time"] = f"{digits(1000 * dev['time_per_example'])} ms"
            row["batch"] = f"in batches of {dev['batch_size']}"
            static = _static_row(data, dev)
            if static is not None:
                row["static"] = metric_text(data.value(static))
                row["static_name"] = f"{static['subnet']}, {share_text(static['flops'] / data.full['flops'])} of FLOPs"
        rows.append(row)
    return rows


def points_sentence(data: RunData) -> str:
    """What the development set says about the points that choose by input, against static sizes."""
    chosen = "Metric and FLOPs of validation are those that the points were chosen by."
    if all(is_static(data, name) for name in data.points):
        return (
            f"Every point is one size for all inputs: choosing by input did not pay on the validation slice. {chosen}"
        )
    better: list[str] = []
    rest: list[str] = []
    for name in data.points:
        dev = data.spent_by(name, "development")
        static = _static_row(data, dev) if dev is not None else None
        if dev is not None and static is not None and not is_static(data, name):
            gain = round(100 * data.value(dev), 1) - round(100 * data.value(static), 1)
            (better if gain > 0 else rest).append(name)
    if not better and not rest:
        return chosen
    said = []
    if better:
        said.append(f"{listed(better)} {_verb(better, 'beats', 'beat')} the best static size that takes no more FLOPs")
    if rest:
        said.append(f"{listed(rest)} {_verb(rest, 'does', 'do')} not{'' if better else ' beat the best static size'}")
    return f"On the development set, which no choice has seen, {'; '.join(said)}."


def is_static(data: RunData, name: str) -> bool:
    """Whether an operating point is one size for all inputs."""
    return data.points[name].policy.subnet is not None


def _verb(names: list[str], one: str, many: str) -> str:
    return one if len(names) == 1 else many


def search_picture(data: RunData) -> Picture | None:
    """All policies that were tried; None where none were."""
    if not data.tried:
        return None
    points = []
    for row in data.tried:
        shape, colour, _ = _LOOKS[row["policy"].partition(":")[0]]
        title = f"{row['shown']}: {metric_text(row['value'])}, {share_text(row['flops_share'])} of the FLOPs"
        points.append(Point(100 * row["flops_share"], 100 * row["value"], "", title, shape, colour, 2.6))
    same: dict[tuple[float, float], list[str]] = {}
    for name, point in data.points.items():
        same.setdefault((100 * point.flops, 100 * point.value), []).append(name)
    for (cost, value), names in same.items():
        title = f"{', '.join(names)}: {value:.1f}, {cost:.0f} % of the FLOPs"
        points.append(Point(cost, value, ", ".join(names), title, "diamond", "accent", 6, counts=False, named=True))
    kinds = {row["policy"].partition(":")[0] for row in data.tried}
    keys = [("", [look for kind, look in _LOOKS.items() if kind in kinds])]
    caption = (
        f"{several(len(data.tried), 'policy', 'policies')} tried on the validation slice, and the points chosen from "
        f"them. {_search_sentence(data)}"
    )

    def draw(size: tuple[float, float]) -> Drawing:
        return scatter(
            points,
            x_label="FLOPs an input, % of the full model's",
            y_label=f"{data.task.primary} on validation, {metric_unit(data.task.primary)}",
            keys=keys,
            label=caption,
            size=size,
            name_front=False,
        )

    return Picture("search", caption, draw((720.0, 400.0)), draw((346.0, 380.0)))


def spendings(data: RunData) -> list[Spending]:
    """One for each point whose choices by input were kept: those on the development set, else those on validation."""
    found = []
    for name, point in data.points.items():
        if is_static(data, name):
            continue
        row = data.spent_by(name, "development") or data.spent_by(name, "validation")
        if row is not None:
            examples = (
                f"{several(row['examples'], 'example')} of the {row['data']} set" if "examples" in row else row["data"]
            )
            found.append(Spending(name, str(point.policy), examples, _pictures(data, name, row)))
    return found


def static_sentence(data: RunData) -> str:
    """Which points have no picture because they choose nothing; empty where there are none."""
    names = [name for name in data.points if is_static(data, name)]
    if not names:
        return ""
    return f"{listed(names)} {_verb(names, 'is', 'are')} one size for all inputs: nothing is chosen by input."


def _search_sentence(data: RunData) -> str:
    """The cheapest dynamic policy as good as the full model, against the cheapest static one."""
    full = data.tried[0]["value"]
    good = [row for row in data.tried if row["value"] >= full]
    static = min((row for row in good if row["policy"].startswith("static:")), key=lambda row: row["flops_share"])
    dynamic = min(good, key=lambda row: row["flops_share"])
    if dynamic["flops_share"] >= static["flops_share"]:
        return "No choice by input reaches the full model's metric for less than a static size does."
    return (
        f"The full model's {metric_text(full)} is reached with {share_text(dynamic['flops_share'])} of its FLOPs by "
        f"{dynamic['shown']}, by one size for all with {share_text(static['flops_share'])}."
    )


def _static_row(data: RunData, dev: dict[str, Any]) -> dict[str, Any] | None:
    """The best sub-network on the same data that takes no more FLOPs; None where there is none to compare with."""
    if not is_same_set(data, dev):
        return None
    cheap = [row for row in data.results if row["flops"] <= 1.005 * dev["flops_mean"]]  # gates and off-ramps apart
    return max(cheap, key=data.value) if cheap else None


def _pictures(data: RunData, name: str, row: dict[str, Any]) -> list[Picture]:
    layers = [{float(width): float(share) for width, share in layer.items()} for layer in row["widths"]]
    exits = {int(number): float(share) for number, share in row["exits"].items()}
    colours = {width: width_colour(data, width) for layer in layers for width in layer}
    file = file_name(name)
    widths, leaving = _widths_sentence(layers), _exits_sentence(exits, depth=len(layers))
    label = f"{name}: width of each layer. {widths}"
    bars = layer_widths(layers, colours=colours, label=label, width=346.0)
    histogram = exit_histogram(exits, depth=len(layers), label=f"{name}: layers run. {leaving}", width=346.0)
    return [Picture(f"widths-{file}", widths, bars), Picture(f"exits-{file}", leaving, histogram)]


def _widths_sentence(layers: list[dict[float, float]]) -> str:
    ran: dict[float, float] = {}
    for layer in layers:
        for width, share in layer.items():
            ran[width] = ran.get(width, 0.0) + share / len(layers)
    idle = ran.pop(0.0, 0.0)
    shares = {width: share / sum(ran.values()) for width, share in ran.items()}
    most = max(shares, key=lambda width: shares[width])
    mean = sum(width * share for width, share in shares.items())
    if len(shares) == 1:
        said = f"Every layer that runs does so at width {most:g}"
    else:
        said = (
            f"{share_text(shares[most])} of the layers that run do so at width {most:g}; the mean width is {mean:.2f}"
        )
    return f"{said}; {share_text(idle)} of all layers are not run." if idle else f"{said}; all layers are run."


def _exits_sentence(exits: dict[int, float], *, depth: int) -> str:
    mean = sum(layers * share for layers, share in exits.items())
    if len(exits) == 1:
        return f"All inputs run {several(next(iter(exits)), 'layer')}."
    early = 1 - exits.get(depth, 0.0)
    return f"{share_text(early)} of the inputs leave early; the mean is {mean:.1f} of {depth} layers."
