"""What a request gets back."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """The answer to one text.

    Attributes:
        logits: ``(outputs,)``.
        size: name of the size that answered.
        tokens: that the text became.
        truncated: whether it was cut.
        flops: floating-point operations that it took.
        layers: that ran.
        widths: ``(layers of the full model,)``, the width that each ran at, 0.0 where it did not.
    """

    logits: tuple[float, ...]
    size: str
    tokens: int
    truncated: bool
    flops: int
    layers: int
    widths: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in seconds, of the request's slowest text."""

    tokenisation: float
    queue: float
    inference: float


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to a request, in the order of its texts."""

    rows: tuple[Row, ...]
    timing: Timing
