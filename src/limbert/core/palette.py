"""Colours of the report and the playground by name, light and dark; ordered colours differ in lightness."""

COLOUR_LEVELS = 8  # shades of one hue, from the lowest value to the highest

_BASE_COLOURS = {  # name: (light, dark)
    "paper": ("#ffffff", "#12161b"),
    "panel": ("#f5f7f9", "#1a2027"),
    "ink": ("#1a1f26", "#e8ecf1"),
    "soft": ("#566170", "#9eabb9"),
    "grid": ("#e2e6eb", "#2c343d"),
    "accent": ("#b8480a", "#ff9d52"),
    "idle": ("#e6e9ed", "#262d35"),
    "link": ("#0b57a4", "#84bdf5"),
}
_WIDTH_GRADIENT = (
    ("#c4daf0", "#4a8ccc", "#0a2f5e"),
    ("#274a6e", "#5a9bd8", "#cfe6ff"),
)  # narrow, middle, wide: light, then dark
_HEAT_GRADIENT = (
    ("#e6f2ef", "#6bb3a6", "#0b5950"),
    ("#182c2b", "#2c7a70", "#8fe3d5"),
)  # low, middle, high: light, then dark
_DARK_TEXT, _LIGHT_TEXT = "#10151a", "#ffffff"


def palette_colours() -> dict[str, tuple[str, str]]:
    """``(light, dark)`` by name: base colours, gradients ``width-0`` .. ``heat-7``, text on them ``on-heat-0`` etc."""
    colours = dict(_BASE_COLOURS)
    for name, stops in (("width", _WIDTH_GRADIENT), ("heat", _HEAT_GRADIENT)):
        for level in range(COLOUR_LEVELS):
            pair = tuple(_interpolate_colour(part, level / (COLOUR_LEVELS - 1)) for part in stops)
            colours[f"{name}-{level}"] = (pair[0], pair[1])
            colours[f"on-{name}-{level}"] = (_contrasting_text_colour(pair[0]), _contrasting_text_colour(pair[1]))
    return colours


def level_for_rank(rank: int, count: int) -> int:
    """The gradient level of the ``rank``-th of ``count`` values, spread over all levels."""
    return COLOUR_LEVELS - 1 if count < 2 else round(rank * (COLOUR_LEVELS - 1) / (count - 1))


def _interpolate_colour(stops: tuple[str, str, str], fraction: float) -> str:
    low, high = (stops[0], stops[1]) if fraction < 0.5 else (stops[1], stops[2])
    weight = 2 * fraction if fraction < 0.5 else 2 * fraction - 1
    parts = [round(a + weight * (b - a)) for a, b in zip(_rgb(low), _rgb(high), strict=True)]
    return "#" + "".join(f"{part:02x}" for part in parts)


def _rgb(colour: str) -> list[int]:
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def _contrasting_text_colour(colour: str) -> str:
    """Dark or light text, whichever has the higher contrast (relative luminance of WCAG 2)."""
    linear = [(part / 255 / 12.92) if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4
              for part in _rgb(colour)]  # fmt: skip
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _DARK_TEXT if luminance > 0.19 else _LIGHT_TEXT
