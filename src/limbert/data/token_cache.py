"""Cache of token ids in Arrow files, found by a digest of the texts and the tokenizer."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbert.errors import first_line
from limbert.files import json_fingerprint

logger = logging.getLogger(__name__)

_CACHE_VERSION = "2"  # raise it when the meaning of the cached arrays changes


def default_cache_dir() -> Path:
    """``$LIMBERT_CACHE``, or ``~/.cache/limbert``; RuntimeError if there is no home folder either."""
    return Path(os.environ.get("LIMBERT_CACHE") or Path.home() / ".cache" / "limbert")


def tokenization_fingerprint(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, *, max_length: int
) -> str:
    """A digest of everything that decides the token ids: the tokenizer's state, the truncation, and the texts.

    Unlike the fingerprint of `datasets`, it does not change when the tokenizer is used: the backend's own truncation
    and padding, which every call sets anew, are left out.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    options = [type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.truncation_side, max_length]
    return json_fingerprint([_CACHE_VERSION, state, options, texts, pairs])


def map_with_cache(
    encode: Callable[[list[str], list[str] | None], Any],
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    names: Sequence[str],
    batch_size: int,
    key: str,
    cache_dir: Path | None,
) -> dict[str, Any] | None:
    """Encode texts, or pairs of texts, by ``Dataset.map`` in batches, with its cache file named by ``key``.

    Returns:
        An Arrow array of lists for each of the tokenizer's outputs in ``names``; None if the cache cannot be used.
    """
    import datasets
    import pyarrow

    columns = {"text": list(texts)} | ({} if pairs is None else {"pair": list(pairs)})

    def read_or_build(path: Path) -> dict[str, Any]:
        with hidden_progress_bars():
            mapped = datasets.Dataset.from_dict(columns).map(
                lambda batch: dict(encode(batch["text"], batch.get("pair"))),
                batched=True,
                batch_size=batch_size,
                remove_columns=list(columns),
                features=datasets.Features({name: datasets.List(datasets.Value("int32")) for name in names}),
                cache_file_name=str(path),
                new_fingerprint=path.stem,
            )
        if len(mapped) != len(texts) or mapped.column_names != [*names]:
            raise ValueError("it holds other examples")
        return {name: mapped.data.column(name).combine_chunks() for name in names}

    try:
        path = Path(cache_dir or default_cache_dir()) / "tokens" / f"{key}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return read_or_build(path)
        except (pyarrow.ArrowException, ValueError) as error:
            logger.warning("token cache %s is broken and built again: %s", path, first_line(error))
            path.unlink(missing_ok=True)
            return read_or_build(path)
    except (OSError, RuntimeError) as error:  # a full disk; a system user without a home
        logger.warning("token cache cannot be used, continuing without it: %s", first_line(error))
        return None


@contextmanager
def hidden_progress_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets`; the setting before is restored."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
