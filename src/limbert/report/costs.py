"""Section: the metric against what it costs (latency, FLOPs, size), with the front, and what that says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbert.core.palette import level_for_rank
from limbert.report.axes import LegendEntry
from limbert.report.drawing import MARKER_SHAPES, MarkerShape
from limbert.report.measured import MeasurementSetting, group_by_setting
from limbert.report.numbers import format_metric, format_percent, format_si, format_significant, metric_unit
from limbert.report.picture import Picture
from limbert.report.read import RunData
from limbert.report.scatter import ScatterPoint, pareto_front_points, scatter

METRIC_RETENTION = 0.99  # the share of the full model's metric that "as good as" means in sentences
_SEARCHED_MARKER: tuple[MarkerShape, str] = ("diamond", "heat-4")  # sub-networks off the grid
_WIDE_SIZE, _NARROW_SIZE = (720.0, 430.0), (346.0, 380.0)


@dataclass(frozen=True)
class CostAxis:
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
    tab_label: str
    file_stem: str
    axis_label: str
    divisor: float
    values: dict[str, float]
    format_value: Any
    setting: MeasurementSetting | None = None


@dataclass(frozen=True)
class CostPanel:
    """One side of the switch: a picture, or several where the same cost was measured in several settings."""

    tab: str
    name: str
    settings: list[str]
    pictures: list[Picture]
    fronts: list[list[dict[str, str]]]


def cost_panels(data: RunData) -> list[CostPanel]:
    """The sides of the switch, latency first where it was measured."""
    panels: dict[str, list[CostAxis]] = {}
    for cost in _costs(data):
        panels.setdefault(cost.tab_label, []).append(cost)
    return [
        CostPanel(
            tab,
            costs[0].file_stem.partition("-")[0],
            [str(cost.setting) if cost.setting else "" for cost in costs],
            [_picture(data, cost) for cost in costs],
            [_front_rows(data, cost) for cost in costs],
        )
        for tab, costs in panels.items()
    ]


def cheapest_close_to_full(data: RunData, costs: dict[str, float]) -> dict[str, Any] | None:
    """The cheapest sub-network that keeps `KEEPS` of the full model's metric; None where the metric is not positive."""
    full = data.metric_value(data.full_result)
    good = [row for row in data.results if row["subnet"] in costs and data.metric_value(row) >= METRIC_RETENTION * full]
    return min(good, key=lambda row: (costs[row["subnet"]], -data.metric_value(row))) if full > 0 and good else None


def width_colour(data: RunData, width: float) -> str:
    """The shade that stands for a width, everywhere on the page."""
    ranks = sorted({*data.space.widths, *(row["width"] for row in data.grid_results)})
    nearest = min(ranks, key=lambda one: abs(one - width))
    return f"width-{level_for_rank(ranks.index(nearest), len(ranks))}"


def _costs(data: RunData) -> list[CostAxis]:
    found = []
    measured = group_by_setting(data.profile)
    for number, (setting, rows) in enumerate(measured.items()):
        latency = {name: row.latency_p50_ms for name, row in rows.items()}
        where = f"ms for {setting.benchmark_setting.batch} x {setting.benchmark_setting.tokens} tokens, median"
        found.append(
            CostAxis(
                "time",
                "Latency",
                f"latency-{number + 1}",
                where,
                1.0,
                latency,
                lambda ms: f"{format_significant(ms)} ms",
                setting,
            )
        )
    flops = {row["subnet"]: float(row["flops"]) for row in data.results}
    big = max(flops.values()) >= 2e9
    axis = f"{'G' if big else 'M'}FLOPs an input, mean"
    found.append(CostAxis("FLOPs", "FLOPs", "flops", axis, 1e9 if big else 1e6, flops, lambda value: format_si(value)))
    sizes = {name: float(row.file_bytes) for name, row in next(iter(measured.values()), {}).items()}
    if sizes:
        found.append(
            CostAxis(
                "file size",
                "File size",
                "size",
                f"MB on disk ({next(iter(measured)).benchmark_setting.backend})",
                1e6,
                sizes,
                lambda value: format_si(value, "B"),
            )
        )
    else:
        params = {row["subnet"]: float(row["params"]) for row in data.results}
        text = "million parameters"
        found.append(
            CostAxis("parameters", "Parameters", "parameters", text, 1e6, params, lambda value: format_si(value))
        )
    known = {row["subnet"] for row in data.results}
    return [cost for cost in found if known & cost.values.keys()]


def _picture(data: RunData, cost: CostAxis) -> Picture:
    points = [_scatter_point(data, row, cost) for row in data.results if row["subnet"] in cost.values]
    if cost.tab_label == "FLOPs":
        points += _operating_point_marks(data, cost)
    caption = _caption(data, cost)

    def draw(size: tuple[float, float]) -> Any:
        return scatter(
            points,
            x_label=cost.axis_label,
            y_label=f"{data.metric}, {metric_unit(data.metric)}",
            legend_groups=_legend_groups(data, with_operating_points=any(not point.front_eligible for point in points)),
            alt_text=f"{data.metric} against {cost.name}. {caption}",
            size=size,
        )

    return Picture(f"cost-{cost.file_stem}", caption, draw(_WIDE_SIZE), draw(_NARROW_SIZE))


def _scatter_point(data: RunData, row: dict[str, Any], cost: CostAxis) -> ScatterPoint:
    name, value = row["subnet"], cost.values[row["subnet"]]
    title = f"{name}: {data.metric} {format_metric(data.metric_value(row))}, {cost.format_value(value)} {cost.name}"
    shape, colour = (
        (_depth_shape(data, row["depth"]), width_colour(data, row["width"]))
        if row in data.grid_results
        else _SEARCHED_MARKER
    )
    place = value / cost.divisor
    return ScatterPoint(
        place, 100 * data.metric_value(row), name, title, shape, colour, show_label=row is data.full_result
    )


def _operating_point_marks(data: RunData, cost: CostAxis) -> list[ScatterPoint]:
    """Those measured on the very set that the sub-networks were."""
    found = []
    for name in data.operating_points:
        row = data.find_policy_result(name, "development")
        if row is not None and is_same_eval_dataset(data, row):
            title = f"{name}: {data.metric} {format_metric(data.metric_value(row))}, {cost.format_value(row['flops_mean'])} FLOPs"
            value = 100 * data.metric_value(row)
            place = row["flops_mean"] / cost.divisor
            found.append(
                ScatterPoint(place, value, name, title, "diamond", "accent", 6, front_eligible=False, show_label=True)
            )
    return found


def is_same_eval_dataset(data: RunData, row: dict[str, Any]) -> bool:
    """Whether an operating point ran on the data that ``results.jsonl`` is about: the full model's FLOPs tell."""
    return abs(row["flops_full"] / data.full_result["flops"] - 1) < 1e-3


def _depth_shape(data: RunData, depth: float) -> MarkerShape:
    ranks = sorted({row["depth"] for row in data.grid_results}, reverse=True)
    return MARKER_SHAPES[ranks.index(depth) % len(MARKER_SHAPES)]


def _legend_groups(data: RunData, *, with_operating_points: bool) -> list[tuple[str, Sequence[LegendEntry]]]:
    widths = sorted({row["width"] for row in data.grid_results})
    depths = sorted({row["depth"] for row in data.grid_results})
    keys: list[tuple[str, Sequence[LegendEntry]]] = [
        ("width", [("circle", width_colour(data, width), f"{width:g}") for width in widths]),
        ("depth", [(_depth_shape(data, depth), "paper", f"{depth:g}") for depth in depths]),
    ]
    if len(data.grid_results) < len(data.results):
        keys.append(("", [(*_SEARCHED_MARKER, "found by search")]))
    if with_operating_points:
        keys.append(("", [("diamond", "accent", "operating point")]))
    return keys


def _caption(data: RunData, cost: CostAxis) -> str:
    full, best = data.full_result, cheapest_close_to_full(data, cost.values)
    shown = format_metric(data.metric_value(full))
    end = f"The orange line joins those that nothing of the same or less {cost.name} beats."
    if best is None or full["subnet"] not in cost.values:
        return f"Every dot is a sub-network. {end}"
    share = cost.values[best["subnet"]] / cost.values[full["subnet"]]
    kept = data.metric_value(best) / data.metric_value(full)
    if best is full:
        others = [row for row in data.results if row is not full and row["subnet"] in cost.values]
        if not others:
            return f"The full model reaches {data.metric} {shown}."
        near = max(others, key=data.metric_value)
        kept, share = (
            data.metric_value(near) / data.metric_value(full),
            cost.values[near["subnet"]] / cost.values[full["subnet"]],
        )
        said = (
            f"No smaller size keeps {100 * METRIC_RETENTION:.0f} % of the full model's {data.metric}; {near['subnet']} comes "
            f"closest with {100 * kept:.1f} % of it at {format_percent(share)} of the {cost.name}."
        )
    elif kept >= 1:
        reached = f"{best['subnet']} reaches the full model's {data.metric} ({shown})"
        said = f"{reached} at {format_percent(share)} of its {cost.name}."
    else:
        said = (
            f"{best['subnet']} keeps {100 * kept:.1f} % of the full model's {data.metric} "
            f"({format_metric(data.metric_value(best))} of {shown}) at {format_percent(share)} of its {cost.name}."
        )
    return f"{said} {end}"


def _front_rows(data: RunData, cost: CostAxis) -> list[dict[str, str]]:
    points = [_scatter_point(data, row, cost) for row in data.results if row["subnet"] in cost.values]
    full = cost.values.get(data.full_result["subnet"])
    return [
        {
            "name": point.label,
            "value": f"{point.value:.1f}",
            "cost": cost.format_value(cost.values[point.label]),
            "share": format_percent(cost.values[point.label] / full) if full else "",
        }
        for point in pareto_front_points(points)
    ]
