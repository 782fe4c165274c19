"""Draw the figures of ``docs/concepts.md`` (width, depth, gates, exits) as PNGs: ``draw_concepts.py FOLDER``.

Schematic pictures of an encoder with six layers of twelve heads. Limbert computes which layers and heads are kept, and
which layers a gate decides for.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from limbert import Shape, Space, Subnet
from limbert.model.width_gates import gate_layer_indices

SHAPE = Shape(layers=6, heads=12, neurons=48)
HEAD, NEURON, OFF, EDGE, GATE, EXIT = "#0072b2", "#56b4e9", "#e8e8e8", "#555555", "#d55e00", "#009e73"
ROW, WIDE = 1.0, 12.0  # height of a layer, width of its attention part


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (width, depth, gates, exits):
        figure = draw()
        figure.savefig(folder / f"{draw.__name__}.png", dpi=110)
        plt.close(figure)


def width() -> Any:
    """Four widths of the same layers, side by side."""
    figure, panels = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
    for axes, value in zip(panels, (1.0, 0.75, 0.5, 0.25), strict=True):
        _stack(axes, Subnet.uniform(SHAPE, width=value))
        heads = Subnet.uniform(SHAPE, width=value).heads[0]
        _finish(axes, f"width {value:g}: {heads} of {SHAPE.heads} heads")
    panels[0].text(WIDE / 4, -0.65, "heads", ha="center", color=HEAD, fontsize=9)
    panels[0].text(WIDE * 3 / 4, -0.65, "neurons", ha="center", color="#2b8cc4", fontsize=9)
    return figure


def depth() -> Any:
    """Two rules for which layers a depth keeps."""
    figure, panels = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
    cases = [(rule, value) for rule in ("spread", "first") for value in (0.75, 0.5)]
    for axes, (rule, value) in zip(panels, cases, strict=True):
        subnet = Space(layers=rule).subnet(SHAPE, f"1x{value}")  # type: ignore[arg-type]
        _stack(axes, subnet)
        _finish(axes, f'depth {value:g}, "{rule}":\nlayers {", ".join(map(str, subnet.layers))}')
    return figure


def gates() -> Any:
    """Two inputs of one batch that get different widths."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
    first_layers = gate_layer_indices(3, SHAPE.layers)
    for axes, title, chosen in zip(
        panels, ('"a fine film"', '"not bad at all, for its kind"'), ((0.25, 0.5, 0.25), (0.5, 1.0, 0.75)), strict=True
    ):
        widths = [chosen[sum(layer >= first for first in first_layers) - 1] for layer in range(SHAPE.layers)]
        _uneven(axes, widths)
        for number, (first, value) in enumerate(zip(first_layers, chosen, strict=True)):
            _box(axes, -4.6, first - 0.42, 3.2, 0.62, f"gate {number}: {value:g}", GATE)
            _arrow(axes, (-1.4, first - 0.1), (-0.1, first + 0.35), GATE)
        _finish(axes, title, left=-5)
    return figure


def exits() -> Any:
    """Two inputs, one of which exits early."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 3.9), layout="constrained")
    exit_layers = [round(value * SHAPE.layers) for value in (0.5, 0.75)]
    cases = (('"a fine film"', exit_layers[0], (0.04,)), ('"not bad at all, for its kind"', 6, (0.61, 0.32)))
    for axes, (title, last, entropies) in zip(panels, cases, strict=True):
        _stack(axes, Subnet.uniform(SHAPE, depth=last / SHAPE.layers, layers="first"))
        for exit_layer, entropy in zip(exit_layers, entropies, strict=False):
            exits_here = entropy < 0.15
            text = f"entropy {entropy} " + ("< 0.15: exit" if exits_here else "≥ 0.15: continue")
            _box(axes, WIDE + 0.9, exit_layer - 0.32, 9.4, 0.64, text, EXIT if exits_here else EDGE)
            _arrow(axes, (WIDE + 0.05, exit_layer), (WIDE + 0.9, exit_layer), EXIT if exits_here else EDGE)
        if last == SHAPE.layers:
            _box(axes, WIDE + 0.9, last - 0.32, 9.4, 0.64, "last layer: prediction", EXIT)
            _arrow(axes, (WIDE + 0.05, last), (WIDE + 0.9, last), EXIT)
        _finish(axes, title, right=WIDE + 10.8)
    return figure


def _stack(axes: Any, subnet: Subnet) -> None:
    for layer in range(SHAPE.layers):
        heads, neurons = subnet.layer_widths().get(layer, (0, 0))
        _layer(axes, layer, heads / SHAPE.heads, neurons / SHAPE.neurons)


def _uneven(axes: Any, widths: list[float]) -> None:
    for layer, value in enumerate(widths):
        _layer(axes, layer, value, value)


def _layer(axes: Any, layer: int, heads: float, neurons: float) -> None:
    """One layer as a row of heads and a row of neurons; what is not kept is pale. Layer 0 is at the bottom."""
    half = WIDE / 2
    for left, share, count, colour in ((0, heads, SHAPE.heads, HEAD), (half, neurons, SHAPE.heads, NEURON)):
        size = half / count
        for index in range(count):
            kept = index < round(share * count)
            axes.add_patch(
                Rectangle(
                    (left + index * size + 0.04, layer + 0.12),
                    size - 0.08,
                    ROW - 0.24,
                    facecolor=colour if kept else OFF,
                    edgecolor="none",
                )
            )


def _box(axes: Any, left: float, bottom: float, wide: float, high: float, text: str, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch((left, bottom), wide, high, boxstyle="round,pad=0.02,rounding_size=0.15", fc="white", ec=colour)
    )
    axes.text(left + wide / 2, bottom + high / 2, text, ha="center", va="center", fontsize=9, color=colour)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, lw=1.2))


def _finish(axes: Any, title: str, *, left: float = -0.9, right: float = WIDE + 0.3) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlim(left, right)
    axes.set_ylim(-0.95, SHAPE.layers + 0.45)
    for layer in range(SHAPE.layers):
        axes.text(-0.2, layer + ROW / 2, str(layer), ha="right", va="center", fontsize=7, color=EDGE)
    axes.axis("off")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: draw_concepts.py FOLDER")
    main(Path(sys.argv[1]))
