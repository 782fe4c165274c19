"""Training curves of one phase: the loss above, the score on the validation slice below, on one axis of steps."""

from collections.abc import Sequence

from limbert.report.axes import LinearScale, PlotArea, axes, nice_ticks, padded_range, place_labels
from limbert.report.drawing import Drawing, DrawingElement, Marker, Polyline

Series = Sequence[tuple[float, float]]  # (step, value)


def training_curves(
    losses: Series, scores: Series, *, score_label: str, score_format: str, lower_is_better: bool, alt_text: str,
    size: tuple[float, float],
) -> Drawing:  # fmt: skip
    """The picture; the best score is marked and named with ``score_text``, a format such as ``{:.1f}``."""
    width, height = size
    steps = [step for step, _ in [*losses, *scores]]
    end = 1.03 * max(steps)
    middle = height * 0.55
    marks: list[DrawingElement] = []
    if losses:
        plot = _plot(end, [value for _, value in losses], width, top=30, bottom=middle - 46)
        marks += axes(plot, *_ticks(plot), x_label="optimizer steps", y_label="training loss")
        points = tuple((plot.x(step), plot.y(value)) for step, value in losses)
        marks.append(
            Polyline(points, "width-4", 1.8) if len(points) > 1 else Marker(*points[0], "circle", "width-4", 4)
        )
    if scores:
        plot = _plot(end, [value for _, value in scores], width, top=middle + 26, bottom=height - 46)
        marks += axes(plot, *_ticks(plot), x_label="optimizer steps", y_label=score_label)
        marks += _score_marks(scores, plot, score_format, lower_is_better=lower_is_better)
    return Drawing(width, height, alt_text, tuple(marks))


def _plot(max_step: float, values: Sequence[float], width: float, *, top: float, bottom: float) -> PlotArea:
    return PlotArea(LinearScale(0, max_step, 46, width - 14), LinearScale(*padded_range(values), bottom, top))


def _ticks(plot: PlotArea) -> tuple[list[float], list[float]]:
    return nice_ticks(plot.x.low, plot.x.high, count=3), nice_ticks(plot.y.low, plot.y.high, count=3)


def _score_marks(scores: Series, plot: PlotArea, score_format: str, *, lower_is_better: bool) -> list[DrawingElement]:
    best = (min if lower_is_better else max)(scores, key=lambda one: one[1])
    points = tuple((plot.x(step), plot.y(value)) for step, value in scores)
    marks: list[DrawingElement] = [Polyline(points, "soft", 1.2, dashed=True)] if len(points) > 1 else []
    for (step, value), (x, y) in zip(scores, points, strict=True):
        colour = "accent" if (step, value) == best else "width-4"
        marks.append(Marker(x, y, "circle", colour, 5, "soft", f"step {step:g}: {score_format.format(value)}"))
    obstacles = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    wanted = [(plot.x(best[0]), plot.y(best[1]), f"best {score_format.format(best[1])}", "accent")]
    return [*marks, *place_labels(wanted, obstacles=obstacles, area=plot.bounds)]
