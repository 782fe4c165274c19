"""What the server has been doing lately: counts since the start, and latencies of the last seconds."""

import time
from collections import Counter, deque
from dataclasses import dataclass

_WINDOW = 10.0  # seconds
_MOST = 20000  # latencies kept


@dataclass(frozen=True)
class Snapshot:
    """The server at one moment.

    Attributes:
        size: the best size that requests without wishes get now.
        queued: texts that wait.
        queued_tokens: their tokens.
        running: requests under way, waiting ones included.
        requests_per_second: answered, over the last ten seconds.
        p50: median seconds from arrival to answer of those; None where there were none.
        p99: 99th percentile of the same.
        refused: requests refused since the start.
        answered: requests answered since the start.
        cancelled: requests whose client went away since the start.
        sizes: texts answered since the start, by the size's name.
        level_changes: how often the size in use changed since the start.
        uptime: seconds.
    """

    size: str
    queued: int
    queued_tokens: int
    running: int
    requests_per_second: float
    p50: float | None
    p99: float | None
    refused: int
    answered: int
    cancelled: int
    sizes: dict[str, int]
    level_changes: int
    uptime: float


class Watch:
    """Counts; written to from the event loop alone."""

    def __init__(self) -> None:
        self.refused = 0
        self.answered = 0
        self.cancelled = 0
        self.running = 0
        self.sizes: Counter[str] = Counter()
        self.since = time.monotonic()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_MOST)  # (when, seconds)

    def took(self, seconds: float) -> None:
        """A request was answered."""
        self.answered += 1
        self._latencies.append((time.monotonic(), seconds))

    def recent(self) -> tuple[float, float | None, float | None]:
        """Requests a second, median and 99th percentile of their seconds, over the last ten seconds."""
        now = time.monotonic()
        while self._latencies and self._latencies[0][0] < now - _WINDOW:
            self._latencies.popleft()
        if not self._latencies:
            return 0.0, None, None
        seconds = sorted(one for _, one in self._latencies)
        span = now - self._latencies[0][0] if len(seconds) == _MOST else min(_WINDOW, now - self.since)
        return len(seconds) / max(span, 1e-3), _share(seconds, 0.5), _share(seconds, 0.99)


def _share(ordered: list[float], share: float) -> float:
    """The value that this share of the others is not above."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
