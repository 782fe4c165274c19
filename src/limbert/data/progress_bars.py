"""The progress bars of `datasets`, hidden where Limbert reports progress itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def hidden_progress_bars() -> Iterator[None]:
    """Hide the bars inside; the setting before is restored."""
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
