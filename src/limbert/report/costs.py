"""Section: the metric against what it costs (latency, FLOPs, size), with the front, and what that says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbert.core.palette import level_of
from limbert.report.axes import LegendEntry
from limbert.report.drawing import SHAPES, Shape
from limbert.report.measured import Setting, by_setting
from limbert.report.numbers import amount, digits, metric_text, metric_unit, share_text
from limbert.report.picture import Picture
from limbert.report.read import RunData
from limbert.report.scatter import Point, front, scatter

KEEPS = 0.99  # the share of the full model's metric that "as good as" means in sentences
_FOUND: tuple[Shape, str] = ("diamond", "heat-4")  # sub-networks off the grid
_WIDE, _NARROW = (720.0, 430.0), (346.0, 380.0)


@dataclass(frozen=True)
class Cost:
    """One thing to pay with.

    Attributes:
        name: as in "at half the NAME".
        tab: what the switch calls it.
        file: of the picture.
        axis: what the horizontal axis says, with the unit.
        unit: divides the values for the axis.
        values: by sub-network.
        text: a value for people.
        setting: how it was measured; None for what follows from the sub-network.
    """

    name: str
    tab: str
    file: str
    axis: str
    unit: float
    values: dict[str, float]
    text: Any
    setting: Setting | None = None


@dataclass(frozen=True)
class Panel:
    """One side of the switch: a picture, or several where the same cost was measured in several settings."""

    tab: str
    name: str
    settings: list[str]
    pictures: list[Picture]
    fronts: list[list[dict[str, str]]]


def cost_panels(data: RunData) -> list[Panel]:
    """The sides of the switch, latency first where it was measured."""
    panels: dict[str, list[Cost]] = {}
    for cost in _costs(data):
        panels.setdefault(cost.tab, []).append(cost)
    return [
        Panel(
            tab,
            costs[0].file.partition("-")[0],
            [str(cost.setting) if cost.setting else "" for cost in costs],
            [_picture(data, cost) for cost in costs],
            [_front_rows(data, cost) for cost in costs],
        )
        for tab, costs in panels.items()
    ]


def smallest_keeping(data: RunData, values: dict[str, float]) -> dict[str, Any] | None:
    """The cheapest sub-network that keeps `KEEPS` of the full model's metric; None where the metric is not positive."""
    full = data.value(data.full)
    good = [row for row in data.results if row["subnet"] in values and data.value(row) >= KEEPS * full]
    return min(good, key=lambda row: (values[row["subnet"]], -data.value(row))) if full > 0 and good else None


def width_colour(data: RunData, width: float) -> str:
    """The shade that stands for a width, everywhere on the page."""
    ranks = sorted({*data.space.widths, *(row["width"] for row in data.grid)})
    nearest = min(ranks, key=lambda one: abs(one - width))
    return f"width-{level_of(ranks.index(nearest), len(ranks))}"


def _costs(data: RunData) -> list[Cost]:
    found = []
    measured = by_setting(data.profile)
    for number, (setting, rows) in enumerate(measured.items()):
        latency = {name: row.latency_p50_ms for name, row in rows.items()}
        where = f"ms for {setting.cell.batch} x {setting.cell.tokens} tokens, median"
        found.append(
            Cost(
                "time", "Latency", f"latency-{number + 1}", where, 1.0, latency, lambda ms: f"{digits(ms)} ms", setting
            )
        )
    flops = {row["subnet"]: float(row["flops"]) for row in data.results}
    big = max(flops.values()) >= 2e9
    axis = f"{'G' if big else 'M'}FLOPs an input, mean"
    found.append(Cost("FLOPs", "FLOPs", "flops", axis, 1e9 if big else 1e6, flops, lambda value: amount(value)))
    sizes = {name: float(row.file_bytes) for name, row in next(iter(measured.values()), {}).items()}
    if sizes:
        found.append(
            Cost(
                "file size",
                "File size",
                "size",
                f"MB on disk ({next(iter(measured)).cell.backend})",
                1e6,
                sizes,
                lambda value: amount(value, "B"),
            )
        )
    else:
        params = {row["subnet"]: float(row["params"]) for row in data.results}
        text = "million parameters"
        found.append(Cost("parameters", "Parameters", "parameters", text, 1e6, params, lambda value: amount(value)))
    known = {row["subnet"] for row in data.results}
    return [cost for cost in found if known & cost.values.keys()]


def _picture(data: RunData, cost: Cost) -> Picture:
    points = [_point(data, row, cost) for row in data.results if row["subnet"] in cost.values]
    if cost.tab == "FLOPs":
        points += _operating_points(data, cost)
    caption = _sentence(data, cost)

    def draw(size: tuple[float, float]) -> Any:
        return scatter(
            points,
            x_label=cost.axis,
            y_label=f"{data.metric}, {metric_unit(data.metric)}",
            keys=_keys(data, operating=any(not point.counts for point in points)),
            label=f"{data.metric} against {cost.name}. {caption}",
            size=size,
        )

    return Picture(f"cost-{cost.file}", caption, draw(_WIDE), draw(_NARROW))


def _point(data: RunData, row: dict[str, Any], cost: Cost) -> Point:
    name, value = row["subnet"], cost.values[row["subnet"]]
    title = f"{name}: {data.metric} {metric_text(data.value(row))}, {cost.text(value)} {cost.name}"
    shape, colour = (_shape(data, row["depth"]), width_colour(data, row["width"])) if row in data.grid else _FOUND
    place = value / cost.unit
    return Point(place, 100 * data.value(row), name, title, shape, colour, named=row is data.full)


def _operating_points(data: RunData, cost: Cost) -> list[Point]:
    """Those measured on the very set that the sub-networks were."""
    found = []
    for name in data.points:
        row = data.spent_by(name, "development")
        if row is not None and is_same_set(data, row):
            title = f"{name}: {data.metric} {metric_text(data.value(row))}, {cost.text(row['flops_mean'])} FLOPs"
            value = 100 * data.value(row)
            place = row["flops_mean"] / cost.unit
            found.append(Point(place, value, name, title, "diamond", "accent", 6, counts=False, named=True))
    return found


def is_same_set(data: RunData, row: dict[str, Any]) -> bool:
    """Whether an operating point ran on the data that ``results.jsonl`` is about: the full model's FLOPs tell."""
    return abs(row["flops_full"] / data.full["flops"] - 1) < 1e-3


def _shape(data: RunData, depth: float) -> Shape:
    ranks = sorted({row["depth"] for row in data.grid}, reverse=True)
    return SHAPES[ranks.index(depth) % len(SHAPES)]


def _keys(data: RunData, *, operating: bool) -> list[tuple[str, Sequence[LegendEntry]]]:
    widths = sorted({row["width"] for row in data.grid})
    depths = sorted({row["depth"] for row in data.grid})
    keys: list[tuple[str, Sequence[LegendEntry]]] = [
        ("width", [("circle", width_colour(data, width), f"{width:g}") for width in widths]),
        ("depth", [(_shape(data, depth), "paper", f"{depth:g}") for depth in depths]),
    ]
    if len(data.grid) < len(data.results):
        keys.append(("", [(*_FOUND, "found by search")]))
    if operating:
        keys.append(("", [("diamond", "accent", "operating point")]))
    return keys


def _sentence(data: RunData, cost: Cost) -> str:
    full, best = data.full, smallest_keeping(data, cost.values)
    shown = metric_text(data.value(full))
    end = f"The orange line joins those that nothing of the same or less {cost.name} beats."
    if best is None or full["subnet"] not in cost.values:
        return f"Every dot is a sub-network. {end}"
    share = cost.values[best["subnet"]] / cost.values[full["subnet"]]
    kept = data.value(best) / data.value(full)
    if best is full:
        others = [row for row in data.results if row is not full and row["subnet"] in cost.values]
        if not others:
            return f"The full model reaches {data.metric} {shown}."
        near = max(others, key=data.value)
        kept, share = data.value(near) / data.value(full), cost.values[near["subnet"]] / cost.values[full["subnet"]]
        said = (
            f"No smaller size keeps {100 * KEEPS:.0f} % of the full model's {data.metric}; {near['subnet']} comes "
            f"closest with {100 * kept:.1f} % of it at {share_text(share)} of the {cost.name}."
        )
    elif kept >= 1:
        reached = f"{best['subnet']} reaches the full model's {data.metric} ({shown})"
        said = f"{reached} at {share_text(share)} of its {cost.name}."
    else:
        said = (
            f"{best['subnet']} keeps {100 * kept:.1f} % of the full model's {data.metric} "
            f"({metric_text(data.value(best))} of {shown}) at {share_text(share)} of its {cost.name}."
        )
    return f"{said} {end}"


def _front_rows(data: RunData, cost: Cost) -> list[dict[str, str]]:
    points = [_point(data, row, cost) for row in data.results if row["subnet"] in cost.values]
    full = cost.values.get(data.full["subnet"])
    return [
        {
            "name": point.name,
            "value": f"{point.value:.1f}",
            "cost": cost.text(cost.values[point.name]),
            "share": share_text(cost.values[point.name] / full) if full else "",
        }
        for point in front(points)
    ]
