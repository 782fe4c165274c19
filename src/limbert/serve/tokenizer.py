"""Texts to token ids, in threads of their own so that the event loop never waits for long texts."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from limbert.data.tokenize import check_tokenizer
from limbert.serve.errors import InvalidRequestError

TextInput = tuple[str, str | None]  # a text and its pair


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text, or pair of texts, as the model takes it.

    Attributes:
        ids: ``(tokens,)`` int64.
        types: ``(tokens,)`` int64, which text of a pair; None where the model takes no such thing.
        truncated: whether something was cut.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    truncated: bool


class FastTokenizer:
    """The run's tokenizer without the Python around it. Safe for many threads.

    Args:
        tokenizer: a fast one with a padding token.
        max_tokens: longest input, special tokens included; of a pair that is longer the longer text is cut.

    Raises:
        ConfigError: if the tokenizer is another one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        check_tokenizer(tokenizer)
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
        self.uses_token_types = "token_type_ids" in tokenizer.model_input_names
        self.pad_token_id, self.pad_token_type_id = int(tokenizer.pad_token_id), int(tokenizer.pad_token_type_id)

    def tokenize(self, texts: Sequence[TextInput]) -> list[TokenizedText]:
        """Tokenise, in order.

        Raises:
            BadRequest: for a text that is not Unicode (lone surrogates).
        """
        inputs = [text if pair is None else (text, pair) for text, pair in texts]
        try:
            encodings = self._backend.encode_batch_fast(inputs)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError("a text holds characters that are no Unicode") from error
        return [
            TokenizedText(
                np.array(one.ids, dtype=np.int64),
                np.array(one.type_ids, dtype=np.int64) if self.uses_token_types else None,
                bool(one.overflowing),
            )
            for one in encodings
        ]


class WorkerThreads:
    """A few threads that work off calls in the order of their coming.

    Args:
        count: of threads.
        name: of the threads, for debuggers.
    """

    def __init__(self, num_threads: int, *, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run_loop, name=f"{name}-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[[], None]) -> None:
        """Have a function called; it must not raise."""
        self._calls.put(function)

    def close(self) -> None:
        """End the threads after what has been asked of them."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _run_loop(self) -> None:
        while (function := self._calls.get()) is not None:
            function()
