"""The one thread that owns the compute: takes batches from the desk, runs them, hands back the answers.

Whatever goes wrong in it is remembered and ends it: everybody who waits gets that answer, and so does everybody who
comes later, instead of silence.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from limbert.serve.answers import Row
from limbert.serve.queue import Desk
from limbert.serve.errors import Down
from limbert.serve.tokenizer import Encoded

logger = logging.getLogger(__name__)


class Compute:
    """Runs until the desk is closed.

    Args:
        desk: where batches come from.
        run: answers a batch: size and texts to rows.
        measured: told of every batch: size, tokens with padding, seconds.
    """

    def __init__(
        self,
        desk: Desk,
        run: Callable[[str, Sequence[Encoded]], list[Row]],
        measured: Callable[[str, int, float], None],
    ) -> None:
        self._desk, self._run, self._measured = desk, run, measured
        self._thread = threading.Thread(target=self._work, name="limbert-compute", daemon=True)
        self._crash: BaseException | None = None

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, seconds at most."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def crash(self) -> BaseException | None:
        """What ended it; None while all is well."""
        return self._crash

    @property
    def alive(self) -> bool:
        """Whether it works, or has not begun."""
        return self._crash is None and (self._thread.ident is None or self._thread.is_alive())

    def _work(self) -> None:
        try:
            while (taken := self._desk.take()) is not None:
                batch, texts = taken
                start = time.perf_counter()
                rows = self._run(batch.size, texts)
                seconds = time.perf_counter() - start
                self._measured(batch.size, batch.tokens, seconds)
                self._desk.finish(batch, rows, seconds)
        except BaseException as error:
            self._crash = error
            logger.exception("the compute thread has died")
            self._desk.close(Down(f"the compute has failed: {type(error).__name__}"))
