"""The picture of a search: what policies reach against what they compute."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbert.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from limbert.evaluation.tune import PolicyCandidate
    from limbert.inference.policy import OperatingPoint

_POLICY_STYLES = {  # colour and marker; colours that colour-blind people tell apart
    "static": ("#555555", "o"),
    "width": ("#0072b2", "s"),
    "depth": ("#e69f00", "^"),
    "width+depth": ("#009e73", "D"),
}


def require_matplotlib() -> None:
    """Raise ConfigError where the drawing library is missing, before any long work."""
    if find_spec("matplotlib") is None:
        raise ConfigError("the picture needs matplotlib; install it with: pip install 'limbert[report]'")


def plot_tradeoff(
    path: Path,
    candidates: Sequence["PolicyCandidate"],
    operating_points: dict[str, "OperatingPoint"],
    *,
    metric: str,
    title: str,
) -> None:
    """Write a PNG: all candidates, their front, and the operating points by name.

    Raises:
        StorageError: if it cannot be written; an earlier picture stays.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for kind, (colour, marker) in _POLICY_STYLES.items():
        of_kind = [one for one in candidates if one.policy.name.partition(":")[0] == kind]
        if of_kind:
            x, y = [100 * one.flops_share for one in of_kind], [100 * one.metric_value for one in of_kind]
            axes.scatter(x, y, s=16, c=colour, marker=marker, alpha=0.55, linewidths=0, label=kind)
    _plot_pareto_front(axes, candidates)
    placed: dict[tuple[float, float], list[str]] = {}
    for name, point in operating_points.items():
        placed.setdefault((100 * point.flops_share, 100 * point.value), []).append(name)
    for (x_value, y_value), names in placed.items():
        axes.scatter([x_value], [y_value], s=90, facecolors="none", edgecolors="black", linewidths=1.4)
        right = x_value > 60  # there the name goes to the left, or it would leave the picture
        axes.annotate(
            ", ".join(names),
            (x_value, y_value),
            textcoords="offset points",
            xytext=(-7 if right else 7, -14),
            ha="right" if right else "left",
            weight="bold",
        )
    axes.set_xlabel("FLOPs an input, % of the full model's")
    axes.set_ylabel(f"{metric}, %")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right")
    fresh = path.with_name(f".{path.name}.new")
    try:
        figure.savefig(fresh, format="png", dpi=130)
        fresh.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)


def _plot_pareto_front(axes: Any, candidates: Sequence["PolicyCandidate"]) -> None:
    from limbert.evaluation.tune import pareto_policies

    best = pareto_policies(candidates)
    axes.step(
        [100 * one.flops_share for one in best],
        [100 * one.metric_value for one in best],
        where="post",
        color="black",
        lw=1,
    )
