"""Section: the operating points: a table, the search they were chosen from, and how each spends its layers."""

from dataclasses import dataclass
from typing import Any

from limbert.report.costs import is_same_eval_dataset, width_colour
from limbert.report.drawing import Drawing, MarkerShape
from limbert.report.numbers import format_metric, format_percent, format_significant, join_words, metric_unit, pluralize
from limbert.report.picture import Picture, safe_file_name
from limbert.report.read import RunData
from limbert.report.scatter import ScatterPoint, scatter
from limbert.report.spending import exit_histogram, layer_width_chart

_POLICY_LEGEND: dict[str, tuple[MarkerShape, str, str]] = {  # by the kind of policy
    "static": ("circle", "ink", "one size for all"),
    "width": ("square", "width-2", "width gates"),
    "depth": ("triangle", "heat-4", "exits"),
    "width+depth": ("diamond", "width-5", "gates and exits"),
}


@dataclass(frozen=True)
class LayerUsage:
    """How one operating point spends its layers."""

    name: str
    policy: str
    dataset: str
    pictures: list[Picture]


def operating_point_rows(data: RunData) -> list[dict[str, str]]:
    """The table of the operating points, as text."""
    rows = []
    for name, point in data.operating_points.items():
        row = {
            "name": name,
            "policy": str(point.policy),
            "validation": format_metric(point.value),
            "validation_flops": format_percent(point.flops_share),
            "development": "",
            "development_flops": "",
            "time": "",
            "batch": "",
            "static": "",
            "static_name": "",
        }
        dev = data.find_policy_result(name, "development")
        if dev is not None:
            row["development"] = format_metric(data.metric_value(dev))
            row["development_flops"] = format_percent(dev["flops_mean"] / dev["flops_full"])
            row["time"] = f"{format_significant(1000 * dev['time_per_example'])} ms"
            row["batch"] = f"in batches of {dev['batch_size']}"
            static = _best_static_row(data, dev)
            if static is not None:
                row["static"] = format_metric(data.metric_value(static))
                row["static_name"] = (
                    f"{static['subnet']}, {format_percent(static['flops'] / data.full_result['flops'])} of FLOPs"
                )
        rows.append(row)
    return rows


def operating_points_summary(data: RunData) -> str:
    """What the development set says about the points that choose by input, against static sizes."""
    chosen = "Metric and FLOPs of validation are those that the points were chosen by."
    if all(is_static(data, name) for name in data.operating_points):
        return (
            f"Every point is one size for all inputs: choosing by input did not pay on the validation slice. {chosen}"
        )
    better: list[str] = []
    rest: list[str] = []
    for name in data.operating_points:
        dev = data.find_policy_result(name, "development")
        static = _best_static_row(data, dev) if dev is not None else None
        if dev is not None and static is not None and not is_static(data, name):
            gain = round(100 * data.metric_value(dev), 1) - round(100 * data.metric_value(static), 1)
            (better if gain > 0 else rest).append(name)
    if not better and not rest:
        return chosen
    said = []
    if better:
        said.append(
            f"{join_words(better)} {_singular_or_plural(better, 'beats', 'beat')} the best static size that takes no more FLOPs"
        )
    if rest:
        said.append(
            f"{join_words(rest)} {_singular_or_plural(rest, 'does', 'do')} not{'' if better else ' beat the best static size'}"
        )
    return f"On the development set, which no choice has seen, {'; '.join(said)}."


def is_static(data: RunData, name: str) -> bool:
    """Whether an operating point is one size for all inputs."""
    return data.operating_points[name].policy.subnet is not None


def _singular_or_plural(names: list[str], singular: str, plural: str) -> str:
    return singular if len(names) == 1 else plural


def search_picture(data: RunData) -> Picture | None:
    """All policies that were tried; None where none were."""
    if not data.policy_candidates:
        return None
    points = []
    for row in data.policy_candidates:
        shape, colour, _ = _POLICY_LEGEND[row["policy"].partition(":")[0]]
        title = f"{row['shown']}: {format_metric(row['value'])}, {format_percent(row['flops_share'])} of the FLOPs"
        points.append(ScatterPoint(100 * row["flops_share"], 100 * row["value"], "", title, shape, colour, 2.6))
    same: dict[tuple[float, float], list[str]] = {}
    for name, point in data.operating_points.items():
        same.setdefault((100 * point.flops_share, 100 * point.value), []).append(name)
    for (cost, value), names in same.items():
        title = f"{', '.join(names)}: {value:.1f}, {cost:.0f} % of the FLOPs"
        points.append(
            ScatterPoint(
                cost, value, ", ".join(names), title, "diamond", "accent", 6, front_eligible=False, show_label=True
            )
        )
    kinds = {row["policy"].partition(":")[0] for row in data.policy_candidates}
    keys = [("", [look for kind, look in _POLICY_LEGEND.items() if kind in kinds])]
    caption = (
        f"{pluralize(len(data.policy_candidates), 'policy', 'policies')} tried on the validation slice, and the points chosen from "
        f"them. {_search_summary(data)}"
    )

    def draw(size: tuple[float, float]) -> Drawing:
        return scatter(
            points,
            x_label="FLOPs an input, % of the full model's",
            y_label=f"{data.task.primary_metric} on validation, {metric_unit(data.task.primary_metric)}",
            legend_groups=keys,
            alt_text=caption,
            size=size,
            label_front=False,
        )

    return Picture("search", caption, draw((720.0, 400.0)), draw((346.0, 380.0)))


def layer_usages(data: RunData) -> list[LayerUsage]:
    """One for each point whose choices by input were kept: those on the development set, else those on validation."""
    found = []
    for name, point in data.operating_points.items():
        if is_static(data, name):
            continue
        row = data.find_policy_result(name, "development") or data.find_policy_result(name, "validation")
        if row is not None:
            examples = (
                f"{pluralize(row['examples'], 'example')} of the {row['data']} set"
                if "examples" in row
                else row["data"]
            )
            found.append(LayerUsage(name, str(point.policy), examples, _usage_pictures(data, name, row)))
    return found


def static_points_note(data: RunData) -> str:
    """Which points have no picture because they choose nothing; empty where there are none."""
    names = [name for name in data.operating_points if is_static(data, name)]
    if not names:
        return ""
    return f"{join_words(names)} {_singular_or_plural(names, 'is', 'are')} one size for all inputs: nothing is chosen by input."


def _search_summary(data: RunData) -> str:
    """The cheapest dynamic policy as good as the full model, against the cheapest static one."""
    full = data.policy_candidates[0]["value"]
    good = [row for row in data.policy_candidates if row["value"] >= full]
    static = min((row for row in good if row["policy"].startswith("static:")), key=lambda row: row["flops_share"])
    dynamic = min(good, key=lambda row: row["flops_share"])
    if dynamic["flops_share"] >= static["flops_share"]:
        return "No choice by input reaches the full model's metric for less than a static size does."
    return (
        f"The full model's {format_metric(full)} is reached with {format_percent(dynamic['flops_share'])} of its FLOPs by "
        f"{dynamic['shown']}, by one size for all with {format_percent(static['flops_share'])}."
    )


def _best_static_row(data: RunData, policy_row: dict[str, Any]) -> dict[str, Any] | None:
    """The best sub-network on the same data that takes no more FLOPs; None where there is none to compare with."""
    if not is_same_eval_dataset(data, policy_row):
        return None
    cheap = [
        row for row in data.results if row["flops"] <= 1.005 * policy_row["flops_mean"]
    ]  # gates and off-ramps apart
    return max(cheap, key=data.metric_value) if cheap else None


def _usage_pictures(data: RunData, name: str, row: dict[str, Any]) -> list[Picture]:
    layers = [{float(width): float(share) for width, share in layer.items()} for layer in row["widths"]]
    exits = {int(number): float(share) for number, share in row["exits"].items()}
    colours = {width: width_colour(data, width) for layer in layers for width in layer}
    file = safe_file_name(name)
    widths, leaving = _widths_summary(layers), _exits_summary(exits, depth=len(layers))
    label = f"{name}: width of each layer. {widths}"
    bars = layer_width_chart(layers, colours=colours, alt_text=label, width=346.0)
    histogram = exit_histogram(exits, depth=len(layers), alt_text=f"{name}: layers run. {leaving}", width=346.0)
    return [Picture(f"widths-{file}", widths, bars), Picture(f"exits-{file}", leaving, histogram)]


def _widths_summary(layers: list[dict[float, float]]) -> str:
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
        said = f"{format_percent(shares[most])} of the layers that run do so at width {most:g}; the mean width is {mean:.2f}"
    return f"{said}; {format_percent(idle)} of all layers are not run." if idle else f"{said}; all layers are run."


def _exits_summary(exits: dict[int, float], *, depth: int) -> str:
    mean = sum(layers * share for layers, share in exits.items())
    if len(exits) == 1:
        return f"All inputs run {pluralize(next(iter(exits)), 'layer')}."
    early = 1 - exits.get(depth, 0.0)
    return f"{format_percent(early)} of the inputs leave early; the mean is {mean:.1f} of {depth} layers."
