"""Numbers as people read them: few digits, a unit, the same everywhere on the page."""

PERCENT_METRICS = ("accuracy", "f1")  # shares; the others are coefficients, shown times 100 as in all our tables


def metric_unit(name: str) -> str:
    """What the axis of a metric says behind its name."""
    return "%" if name.rpartition("/")[2] in PERCENT_METRICS else "x 100"


def format_metric(value: float) -> str:
    """A metric times 100 with one decimal, as in every table of Limbert."""
    return f"{100 * value:.1f}"


def format_si(value: float, unit: str = "") -> str:
    """Three digits and a prefix: ``1.16 G``, ``22.7 M``."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{format_significant(value / size)} {prefix}{unit}"
    return f"{format_significant(value)} {unit}".strip()


def format_significant(value: float) -> str:
    """Three significant digits without an exponent: ``0.123``, ``4.56``, ``78.9``, ``1234``."""
    size = abs(value)
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3g}"
    )


def format_percent(share: float) -> str:
    """A share in percent, with a decimal below 10 %."""
    return f"{100 * share:.1f} %" if abs(share) < 0.0995 else f"{100 * share:.0f} %"


def pluralize(count: int, singular: str, plural: str = "") -> str:
    """``1 input``, ``3 inputs``."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def join_words(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
