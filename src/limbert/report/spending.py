"""How a policy spends its layers: which widths its gates choose at each layer, and after which layer inputs leave."""

from collections.abc import Mapping, Sequence

from limbert.report.axes import legend
from limbert.report.drawing import Box, Drawing, DrawingElement, Text, text_width


def layer_width_chart(
    width_shares: Sequence[Mapping[float, float]], *, colours: Mapping[float, str], alt_text: str, width: float
) -> Drawing:
    """One bar a layer, parted by the width that it ran at for what share of the inputs; width 0 is not run.

    Args:
        layers: shares by width, layer 0 first.
        colours: by width.
        label: for those who hear it.
        width: of the picture, in pixels.
    """
    used = sorted({value for layer in width_shares for value in layer if value})
    keys = [("square", colours[value], f"{value:g}") for value in used]
    if any(0 in layer for layer in width_shares):
        keys.append(("square", "idle", "not run"))
    marks, top = legend([("width", keys)], left=0, right=width)  # type: ignore[list-item]
    row = 24.0 if len(width_shares) <= 12 else 16.0
    left, right = 58.0, width - 2
    top += 22
    marks.append(Text(left, top - 8, "share of the inputs, %", colour="soft"))
    for number, shares in enumerate(width_shares):
        y, x = top + number * row, left
        marks.append(Text(left - 8, y + row / 2 + 4, f"layer {number}", colour="soft", anchor="end"))
        for value in sorted(shares, key=lambda one: (one == 0, one)):
            length = shares[value] * (right - left)
            name = f"width {value:g}" if value else "not run"
            colour = colours[value] if value else "idle"
            title = f"layer {number}: {name} for {100 * shares[value]:.1f} % of the inputs"
            marks.append(Box(x, y + 1, max(length - 1, 0.5), row - 2, colour, title))
            text = f"{100 * shares[value]:.0f}"
            if length > text_width(text, 11) + 8 and row > 20:
                on = f"on-{colour}" if value else "soft"
                marks.append(Text(x + length / 2, y + row / 2 + 4, text, 11, on, "middle"))
            x += length
    return Drawing(width, top + len(width_shares) * row + 4, alt_text, tuple(marks))


def exit_histogram(exit_shares: Mapping[int, float], *, depth: int, alt_text: str, width: float) -> Drawing:
    """One bar for each number of layers after which inputs leave.

    Args:
        exits: shares by the number of layers that ran.
        depth: layers of the full model.
        label: for those who hear it.
        width: of the picture, in pixels.
    """
    left, row, top = 104.0, 30.0, 24.0
    room = width - left - 62
    marks: list[DrawingElement] = [Text(left, 12, "share of the inputs", colour="soft")]
    for number, layers in enumerate(sorted(exit_shares)):
        y, share = top + number * row, exit_shares[layers]
        name = f"all {depth} layers" if layers == depth else f"after {layers} of {depth}"
        colour = "width-5" if layers == depth else "accent"
        marks.append(Text(left - 8, y + row / 2 + 4, name, colour="soft", anchor="end"))
        marks.append(Box(left, y + 3, max(share * room, 1), row - 6, colour, f"{name}: {100 * share:.1f} %"))
        marks.append(Text(left + share * room + 6, y + row / 2 + 4, f"{100 * share:.1f} %", bold=True))
    return Drawing(width, top + len(exit_shares) * row + 2, alt_text, tuple(marks))
