"""The sections of the report as values for the template: pictures, and tables of sub-networks and operating points."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from limbert.core.palette import level_for_rank
from limbert.core.pareto import pareto_front
from limbert.core.units import format_quantity
from limbert.evaluation.results import ProfileRow
from limbert.report import plots
from limbert.report.noise import is_within_noise, metric_interval
from limbert.report.picture import Picture, safe_file_name
from limbert.report.plots import LegendEntry, ScatterPoint
from limbert.report.read import Row, RunData, describe_policy, group_by_setting

_RETENTION = 0.99  # a sub-network is close to the full model with this fraction of its metric
_DEPTH_MARKERS = ("o", "s", "^", "v", "D")
_SEARCHED = ("D", "heat-4")  # marker and colour of sub-networks that a search found
_POLICY_LEGEND: Mapping[str, LegendEntry] = {
    "static": ("o", "ink", "static"),
    "width": ("s", "width-2", "width gates"),
    "depth": ("^", "heat-4", "early exit"),
    "width+depth": ("D", "width-5", "gates and exit"),
    "cascade": ("v", "heat-2", "cascade"),
}
_GATES_PHASE = "gates"  # logs its validation loss with a minus sign; the other phases log the task's metric

format_metric = partial(format_quantity, quantity_type="share")
format_count = partial(format_quantity, quantity_type="count")
format_size = partial(format_quantity, quantity_type="size")


def format_ms(milliseconds: float) -> str:
    """``3.1 ms``."""
    return format_quantity(milliseconds / 1000, quantity_type="latency")


def format_percent(fraction: float) -> str:
    """``4.2 %``, ``42 %``."""
    return f"{100 * fraction:.1f} %" if abs(fraction) < 0.0995 else f"{100 * fraction:.0f} %"


def format_interval(data: RunData, value: float) -> str:
    """The 95 % interval of the primary metric, ``[81.2, 86.1]``; empty where it is unknown."""
    interval = metric_interval(data.metric, value, data.num_examples)
    return f"[{format_metric(interval[0])}, {format_metric(interval[1])}]" if interval else ""


@dataclass(frozen=True)
class Cost:
    """A cost that sub-networks are compared by: ``values`` by sub-network, divided by ``divisor`` on the axis."""

    name: str
    file_stem: str
    unit: str
    axis_label: str
    divisor: float
    values: dict[str, float]
    format_value: Callable[[float], str]
    setting: str = ""


@dataclass(frozen=True)
class Choice:
    """The metric against one cost: the plot, and the rows of the Pareto front, cheapest first."""

    cost: Cost
    picture: Picture
    rows: list[dict[str, Any]]


def choices(data: RunData) -> dict[str, list[Choice]]:
    """One choice for each setting of each cost, by the cost's name; latency first if it was measured."""
    found: dict[str, list[Choice]] = {}
    for cost in _costs(data):
        found.setdefault(cost.name, []).append(Choice(cost, cost_picture(data, cost), _front_rows(data, cost)))
    return found


def first_profile(data: RunData) -> dict[str, ProfileRow]:
    """The rows of the first measured setting by sub-network; empty if nothing was measured."""
    return next(iter(group_by_setting(data.profile).values()), {})


def cheapest_close_to_full(data: RunData, cost: Cost) -> Row:
    """The cheapest sub-network with 99 % of the full model's metric."""
    full = data.metric_value(data.full_result)
    known = [row for row in data.results if row["subnet"] in cost.values]
    close = [row for row in known if data.metric_value(row) >= min(full, _RETENTION * full)]
    return min(close, key=lambda row: (cost.values[row["subnet"]], -data.metric_value(row)), default=data.full_result)


def heat_map_picture(data: RunData) -> Picture:
    """Metric by width and depth, with the latency of the first measured setting or the fraction of the FLOPs."""
    profile, cells = first_profile(data), {}
    for row in data.grid_results:
        value, name = data.metric_value(row), row["subnet"]
        second = format_ms(profile[name].latency_p50_ms) if name in profile else ""
        if not profile:
            second = format_percent(row["flops"] / data.full_result["flops"])
        tip = f"{name}: {data.metric} {format_metric(value)}, {second}{'' if profile else ' of the FLOPs'}"
        cells[row["width"], row["depth"]] = (value, format_metric(value), second, tip)
    height = 52.0 + 70 * len({depth for _, depth in cells})
    alt_text = f"Heat map of {data.metric} by width and depth."
    return Picture("heatmap", alt_text, partial(plots.heat_map, cells=cells), (640, height), (346, height))


@dataclass(frozen=True)
class PointResult:
    """An operating point on the development set, with static sub-networks to compare it with."""

    name: str  # of the operating point
    point: Row  # its settings, and its metric and FLOPs on the validation split
    dev: Row | None  # its row for the development set, if it was evaluated there
    same_flops: Row | None  # the best sub-network that takes no more FLOPs
    same_metric: Row | None  # the sub-network with the fewest FLOPs that is at least as good


def point_results(data: RunData) -> list[PointResult]:
    """All operating points; compared with sub-networks where both ran on the same examples."""
    found = []
    for name, point in data.operating_points.items():
        dev, cheap, good = data.find_policy_result(name, "development"), list[Row](), list[Row]()
        if dev is not None and data.is_comparable(dev):
            cheap = [row for row in data.results if row["flops"] <= dev["flops_mean"]]
            good = [row for row in data.results if data.metric_value(row) >= data.metric_value(dev)]
        best = max(cheap, key=data.metric_value, default=None)
        fewest = min(good, key=lambda row: float(row["flops"]), default=None)
        found.append(PointResult(name, point, dev, best, fewest))
    return found


def search_picture(candidates: list[Row], points: Mapping[str, Row], metric: str, num_examples: int | None) -> Picture:
    """The policies that ``limbert tune`` tried on the validation split (``tune.jsonl``), and the points chosen of them.

    ``points`` are operating points by name, as in ``limbert.json``; ``num_examples`` is the size of the split.
    """
    found, names = [], dict[tuple[float, float], str]()
    for row in candidates:
        marker, colour, _ = _POLICY_LEGEND[row["policy"].partition(":")[0]]
        tip = f"{describe_policy(row)}: {format_metric(row['value'])}, {format_percent(row['flops_share'])} of FLOPs"
        found.append(ScatterPoint(100 * row["flops_share"], 100 * row["value"], tip, marker, colour, 5))
    for name, point in points.items():
        key = (100 * point["flops_share"], 100 * point["validation"][metric])
        names[key] = f"{names[key]}, {name}" if key in names else name
    for (cost, value), label in names.items():
        tip = f"{label}: {value:.1f}, {format_percent(cost / 100)} of FLOPs"
        found.append(ScatterPoint(cost, value, tip, "D", "accent", 10, label, priority=1, on_front=False))
    data = f"{num_examples} validation examples" if num_examples else "the validation split"
    policy_types = {row["policy"].partition(":")[0] for row in candidates}
    draw = partial(
        plots.scatter,
        points=found,
        x_label="FLOPs per example, % of the full model",
        y_label=f"{metric} on {data}, {_metric_unit(metric)}",
        legend_rows=[("", [entry for name, entry in _POLICY_LEGEND.items() if name in policy_types])],
        label_front=False,
    )
    alt_text = f"{metric} of {len(candidates)} policies on the validation split against FLOPs per example."
    return Picture("search", alt_text, draw, (640, 400), (346, 380))


def usage_pictures(data: RunData) -> dict[str, tuple[Row, list[Picture]]]:
    """By operating point that is not static: its row, and which widths and how many layers it runs.

    The row is that of the development set if there is one, else that of the validation split.
    """
    usages = {}
    for name, point in data.operating_points.items():
        row = data.find_policy_result(name, "development") or data.find_policy_result(name, "validation")
        if not point["policy"].startswith("static:") and row is not None:
            usages[name] = row, [_width_picture(data, name, row["widths"]), _exit_picture(name, row)]
    return usages


def _width_picture(data: RunData, name: str, layers: list[dict[str, float]]) -> Picture:
    widths = sorted({float(width) for layer in layers for width in layer}, key=lambda width: (width == 0, width))
    looks = {f"{width:g}": (_width_colour(data, width), f"{width:g}", f", width {width:g}") for width in widths}
    looks |= {"0": ("idle", "not run", ", not run")} if 0.0 in widths else {}
    bars = {
        f"layer {index}": [(layer[key], colour, end) for key, (colour, _, end) in looks.items() if key in layer]
        for index, layer in enumerate(layers)
    }
    legend = [("s", colour, text) for colour, text, _ in looks.values()]
    draw = partial(plots.stacked_bars, bars=bars, heading="width", legend=legend)
    size = (346, 70 + len(layers) * (24.0 if len(layers) <= 12 else 16.0))
    return Picture(f"widths-{safe_file_name(name)}", f"{name}: width of each layer, % of examples.", draw, size)


def _exit_picture(name: str, row: Row) -> Picture:
    total = len(row["widths"])
    bars = {
        f"{layers} of {total} layers": [(fraction, "width-5" if int(layers) == total else "accent", "")]
        for layers, fraction in sorted(row["exits"].items(), key=lambda item: int(item[0]))
    }
    draw, size = partial(plots.stacked_bars, bars=bars), (346, 44.0 + 30 * len(bars))
    return Picture(f"exits-{safe_file_name(name)}", f"{name}: layers run, % of examples.", draw, size)


def training_pictures(data: RunData) -> dict[str, Picture]:
    """Training curves by phase, in training order."""
    pictures = {}
    for phase in dict.fromkeys(row["phase"] for row in data.training_log):
        is_gates = phase == _GATES_PHASE
        losses, scores = (
            [
                (float(row["step"]), scale * float(row[key]))
                for row in data.training_log
                if row["phase"] == phase and key in row
            ]
            for key, scale in (("loss", 1), ("validation", -1 if is_gates else 100))
        )
        label = "validation loss" if is_gates else f"validation: mean {data.metric}, {_metric_unit(data.metric)}"
        if losses or scores:
            draw = partial(plots.training_curves, losses=losses, scores=scores, score_label=label,
                           decimals=3 if is_gates else 1, lower_is_better=is_gates)  # fmt: skip
            alt_text = f"Training loss and validation score of phase {phase} by optimizer step."
            pictures[phase] = Picture(f"training-{safe_file_name(phase)}", alt_text, draw, (346, 400))
    return pictures


def _metric_unit(metric: str) -> str:
    return "%" if metric.endswith(("accuracy", "f1", "exact_match")) else "x 100"


def _costs(data: RunData) -> list[Cost]:
    costs = []
    for number, (setting, rows) in enumerate(group_by_setting(data.profile).items(), start=1):
        setup = next(iter(rows.values())).setup
        label = f"ms per batch of {setup.batch} x {setup.tokens} tokens, median"
        times = {name: row.latency_p50_ms for name, row in rows.items()}
        costs.append(Cost("Latency", f"latency-{number}", "ms", label, 1, times, format_ms, setting))
    flops, params = ({row["subnet"]: float(row[key]) for row in data.results} for key in ("flops", "params"))
    unit, divisor = ("GFLOPs", 1e9) if max(flops.values()) >= 2e9 else ("MFLOPs", 1e6)
    costs.append(Cost("FLOPs", "flops", unit, f"{unit} per example, mean", divisor, flops, format_count))
    if profile := first_profile(data):
        sizes = {name: float(row.file_bytes) for name, row in profile.items()}
        label = f"MB on disk ({next(iter(profile.values())).setup.backend})"
        costs.append(Cost("File size", "size", "MB", label, 1e6, sizes, format_size))
    else:
        costs.append(Cost("Parameters", "parameters", "million", "million parameters", 1e6, params, format_count))
    return [cost for cost in costs if flops.keys() & cost.values.keys()]


def _front_rows(data: RunData, cost: Cost) -> list[dict[str, Any]]:
    full, rows = data.full_result, []
    measured = [row for row in data.results if row["subnet"] in cost.values]
    for row in pareto_front(measured, cost=lambda one: cost.values[one["subnet"]], value=data.metric_value):
        value, target, price = data.metric_value(row), data.metric_value(full), cost.values[row["subnet"]]
        change = round(100 * value, 1) - round(100 * target, 1)
        within = is_within_noise(data.metric, value, target, data.num_examples)
        rows.append({
            "name": row["subnet"],
            "value": value,
            "change": f"{change:+.1f}".replace("-", "\u2212") if abs(change) > 0.05 else "0.0",
            "noise": "" if within is None or row is full else "within noise" if within else "beyond noise",
            "cost": cost.format_value(price),
            "budget": price / cost.divisor,
            "relative": format_percent(price / cost.values[full["subnet"]]) if full["subnet"] in cost.values else "",
        })  # fmt: skip
    return rows


def cost_picture(data: RunData, cost: Cost) -> Picture:
    """The metric of all sub-networks against a cost; against FLOPs, operating points too."""
    points = [_subnet_point(data, row, cost) for row in data.results if row["subnet"] in cost.values]
    for name in data.operating_points if cost.name == "FLOPs" else ():
        dev = data.find_policy_result(name, "development")
        if dev is not None and data.is_comparable(dev):
            value, flops = data.metric_value(dev), dev["flops_mean"]
            tip = f"operating point {name}: {data.metric} {format_metric(value)}, {format_count(flops)} FLOPs"
            place = (flops / cost.divisor, 100 * value)
            points.append(ScatterPoint(*place, tip, "D", "accent", 10, name, priority=2, on_front=False))
    interval = metric_interval(data.metric, data.metric_value(data.full_result), data.num_examples)
    draw = partial(
        plots.scatter,
        points=points,
        x_label=cost.axis_label,
        y_label=f"{data.metric}, {_metric_unit(data.metric)}",
        legend_rows=_subnet_legend(data),
        band=(100 * interval[0], 100 * interval[1]) if interval else None,
        baseline=None if data.baseline is None else 100 * data.baseline,
    )
    alt_text = f"{data.metric} of {len(points)} sub-networks against {cost.axis_label}; the table has the Pareto front."
    return Picture(f"cost-{cost.file_stem}", alt_text, draw, (640, 430), (346, 380))


def _subnet_point(data: RunData, row: Row, cost: Cost) -> ScatterPoint:
    name, value, price = row["subnet"], 100 * data.metric_value(row), cost.values[row["subnet"]]
    marker, colour = _SEARCHED
    if row in data.grid_results:
        marker, colour = _depth_marker(data, row["depth"]), _width_colour(data, row["width"])
    noun = f" {cost.name}" if cost.name in ("FLOPs", "Parameters") else ""
    tip = f"{name}: {data.metric} {value:.1f}, {cost.format_value(price)}{noun}"
    return ScatterPoint(price / cost.divisor, value, tip, marker, colour, label=name, priority=row is data.full_result)


def _width_colour(data: RunData, width: float) -> str:
    widths = sorted({*data.space.widths, *(row["width"] for row in data.grid_results)})
    nearest = min(widths, key=lambda one: abs(one - width))
    return f"width-{level_for_rank(widths.index(nearest), len(widths))}"


def _depth_marker(data: RunData, depth: float) -> str:
    depths = sorted({row["depth"] for row in data.grid_results}, reverse=True)
    return _DEPTH_MARKERS[depths.index(depth) % len(_DEPTH_MARKERS)]


def _subnet_legend(data: RunData) -> list[tuple[str, list[LegendEntry]]]:
    widths, depths = (sorted({row[key] for row in data.grid_results}) for key in ("width", "depth"))
    rows: list[tuple[str, list[LegendEntry]]] = [
        ("width", [("o", _width_colour(data, width), f"{width:g}") for width in widths]),
        ("depth", [(_depth_marker(data, depth), "paper", f"{depth:g}") for depth in depths]),
    ]
    return rows if len(data.grid_results) == len(data.results) else [*rows, ("search", [(*_SEARCHED, "found")])]
