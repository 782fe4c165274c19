"""Texts to token ids, with the tokenizer of the run called directly so that several threads can share it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from limbert.data.tokenize import check_tokenizer
from limbert.serve.errors import InvalidRequestError

TextInput = tuple[str, str | None]  # a text and, for pairs, the second text


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text or pair: ids ``(tokens,)`` and, for models that use them, token types ``(tokens,)``, both int64."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    truncated: bool


class FastTokenizer:
    """Tokenises without padding; thread-safe. A slow tokenizer, or one without a padding token, is a `ConfigError`.

    Args:
        tokenizer: of the model.
        max_length: longest input in tokens, special tokens included; of a longer pair the longer text is truncated.
        vocab_size: rows of the model's embedding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, vocab_size: int) -> None:
        check_tokenizer(tokenizer)
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
        self.vocab_size = vocab_size
        self.uses_token_types = "token_type_ids" in tokenizer.model_input_names
        self.pad_token_id, self.pad_token_type_id = int(tokenizer.pad_token_id), int(tokenizer.pad_token_type_id)

    def tokenize(self, texts: Sequence[TextInput]) -> list[TokenizedText]:
        """Tokenise texts in order; invalid Unicode and tokens without an embedding are an `InvalidRequestError`."""
        inputs = [text if pair is None else (text, pair) for text, pair in texts]
        try:
            encodings = self._backend.encode_batch_fast(inputs)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError("a text is invalid Unicode (it has a lone surrogate)") from error
        tokenized = []
        for index, encoding in enumerate(encodings):
            ids = np.array(encoding.ids, dtype=np.int64)
            if ids.size and ids.max() >= self.vocab_size:
                token = self._backend.id_to_token(int(ids.max()))
                raise InvalidRequestError(
                    f"text {index} has token {token!r} (id {ids.max()}); the model embeds ids below {self.vocab_size}"
                )
            types = np.array(encoding.type_ids, dtype=np.int64) if self.uses_token_types else None
            tokenized.append(TokenizedText(ids, types, bool(encoding.overflowing)))
        return tokenized
