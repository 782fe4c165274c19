"""Training curves of one phase: the loss above, the score on the validation slice below, on one axis of steps."""

from collections.abc import Sequence

from limbert.report.axes import Plot, Scale, axes, padded, place_labels, ticks
from limbert.report.drawing import Dot, Drawing, Line, Mark

Series = Sequence[tuple[float, float]]  # (step, value)


def curves(
    losses: Series, scores: Series, *, score_label: str, score_text: str, low_is_good: bool, label: str,
    size: tuple[float, float],
) -> Drawing:  # fmt: skip
    """The picture; the best score is marked and named with ``score_text``, a format such as ``{:.1f}``."""
    width, height = size
    steps = [step for step, _ in [*losses, *scores]]
    end = 1.03 * max(steps)
    middle = height * 0.55
    marks: list[Mark] = []
    if losses:
        plot = _plot(end, [value for _, value in losses], width, top=30, bottom=middle - 46)
        marks += axes(plot, *_ticks(plot), x_label="optimizer steps", y_label="training loss")
        points = tuple((plot.x(step), plot.y(value)) for step, value in losses)
        marks.append(Line(points, "width-4", 1.8) if len(points) > 1 else Dot(*points[0], "circle", "width-4", 4))
    if scores:
        plot = _plot(end, [value for _, value in scores], width, top=middle + 26, bottom=height - 46)
        marks += axes(plot, *_ticks(plot), x_label="optimizer steps", y_label=score_label)
        marks += _scores(scores, plot, score_text, low_is_good=low_is_good)
    return Drawing(width, height, label, tuple(marks))


def _plot(end: float, values: Sequence[float], width: float, *, top: float, bottom: float) -> Plot:
    return Plot(Scale(0, end, 46, width - 14), Scale(*padded(values), bottom, top))


def _ticks(plot: Plot) -> tuple[list[float], list[float]]:
    return ticks(plot.x.low, plot.x.high, count=3), ticks(plot.y.low, plot.y.high, count=3)


def _scores(scores: Series, plot: Plot, text: str, *, low_is_good: bool) -> list[Mark]:
    best = (min if low_is_good else max)(scores, key=lambda one: one[1])
    points = tuple((plot.x(step), plot.y(value)) for step, value in scores)
    marks: list[Mark] = [Line(points, "soft", 1.2, dashed=True)] if len(points) > 1 else []
    for (step, value), (x, y) in zip(scores, points, strict=True):
        colour = "accent" if (step, value) == best else "width-4"
        marks.append(Dot(x, y, "circle", colour, 5, "soft", f"step {step:g}: {text.format(value)}"))
    obstacles = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    wanted = [(plot.x(best[0]), plot.y(best[1]), f"best {text.format(best[1])}", "accent")]
    return [*marks, *place_labels(wanted, obstacles=obstacles, area=plot.area)]
