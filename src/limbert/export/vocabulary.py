"""A smaller vocabulary for an export: the tokens that given texts need, tokenizer and embedding table rebuilt.

Nothing changes on these texts. A word is split into its longest tokens (WordPiece), by the merges of lowest rank
(BPE) or along the path of highest score (Unigram), and each of these stays the best when other tokens are removed.
"""

import copy
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from limbert.core.config import DataConfig
from limbert.data.load import load_evaluation_data
from limbert.data.readers import Examples, read_examples
from limbert.data.sources import find_sources
from limbert.data.table import FORMATS, file_format
from limbert.data.task_files import load_texts, open_texts, row_parser
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tokenize import TokenizedExamples, check_tokenizer, tokenize_texts
from limbert.errors import ConfigError, DataError, ExportError
from limbert.inference.load import LoadedCheckpoint, warn_about_skipped_rows
from limbert.inference.parity import compare_outputs, parity_batches, require_parity, spread_examples
from limbert.inference.predict import runtime_logits
from limbert.inference.runtimes import Outputs, Runtime, load_runtime
from limbert.model.families import FAMILIES

CHARACTERS = ("all", "texts")
_WHOLE_TEXT = 1 << 30  # tokens
_PARITY_EXAMPLES = 48
_BATCH_SIZE = 32
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class VocabularyReduction:
    """What a smaller vocabulary saves, and what it costs on texts that did not choose it."""

    source: str  # the texts that chose it
    texts: int  # their number; tokens are the same on all of them, logits on some
    tokens_before: int  # rows of the embedding table
    tokens_after: int
    bytes_saved: int  # of the table, in fp32
    dropped_share: float | None = None  # fraction of the development set's tokens that are split further or unknown
    metrics_before: Mapping[str, float] | None = None  # on the development set, in fp32; None without one
    metrics_after: Mapping[str, float] | None = None

    def __str__(self) -> str:
        text = (
            f"Vocabulary: {self.tokens_after:,} of {self.tokens_before:,} tokens ({self.bytes_saved / 1e6:.1f} MB of "
            f"fp32 saved); tokens are the same on all {self.texts:,} texts of {self.source}, logits on "
            f"{min(self.texts, _PARITY_EXAMPLES)} of them."
        )
        if self.metrics_before is None or self.metrics_after is None or self.dropped_share is None:
            return text
        metrics = [
            f"{name} {100 * value:.2f} to {100 * self.metrics_after[name]:.2f}"
            for name, value in self.metrics_before.items()
        ]
        return (
            f"{text} On the development set {100 * self.dropped_share:.2f} % of the tokens are split differently: "
            f"{', '.join(metrics)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def reduce_vocabulary(
    checkpoint: LoadedCheckpoint,
    network: PreTrainedModel,
    source: str,
    data_config: DataConfig,
    *,
    characters: str = "all",
) -> tuple[LoadedCheckpoint, PreTrainedModel, VocabularyReduction]:
    """The checkpoint with a smaller tokenizer, and a copy of the network with the embeddings of its tokens.

    Kept, in their order, are the tokens of the texts, special and added tokens, and what any text can be split into:
    single characters, of WordPiece also as continuations, and bytes.

    Args:
        checkpoint: of the network.
        network: a sub-network of it in evaluation mode.
        source: a file of texts, or data as for training, of which the training texts count if there are any.
        data_config: how files are read, and where the development set is.
        characters: ``all``; or ``texts``, without letters of scripts that the texts do not use (they become unknown).

    Raises:
        ConfigError: for a tokenizer or network without such a vocabulary.
        DataError: for texts that cannot be read.
        ExportError: if tokens or logits on the texts differ.
    """
    tokenizer = checkpoint.tokenizer
    check_tokenizer(tokenizer)
    if network.get_output_embeddings() is not None:
        raise ConfigError(f"{type(network).__name__} predicts tokens; --vocabulary is for networks with a task")
    examples = _read_texts(source, checkpoint, data_config)
    before = _tokenize(replace(checkpoint, max_length=_WHOLE_TEXT), examples)
    kept = _kept_ids(tokenizer, network, np.unique(before.tokens.ids), all_characters=characters == "all")
    rows, columns = _embeddings(network).shape
    new_ids = np.full(rows, -1)  # by old id; -1: dropped
    new_ids[kept] = np.arange(len(kept))
    reduced = replace(checkpoint, tokenizer=_rebuild_tokenizer(tokenizer, new_ids))
    after = _tokenize(replace(reduced, max_length=_WHOLE_TEXT), examples)
    if not np.array_equal(new_ids[before.tokens.ids], after.tokens.ids):
        raise ExportError(f"the smaller vocabulary splits texts of {source} differently; nothing was written")
    smaller = _select_embeddings(network, kept, new_ids)
    sample = _tokenize(checkpoint, spread_examples(examples, _PARITY_EXAMPLES))
    _require_equal_logits(network, smaller, torch.from_numpy(new_ids), sample)
    result = VocabularyReduction(source, len(examples), rows, len(kept), 4 * (rows - len(kept)) * columns)
    return reduced, smaller, replace(result, **_held_out_cost(checkpoint, reduced, network, smaller, data_config))


def _read_texts(source: str, checkpoint: LoadedCheckpoint, config: DataConfig) -> Examples:
    path, task_type = Path(source).expanduser(), checkpoint.task.task_type if checkpoint.task else None
    config = replace(config, data=None, train=None, dev=None)
    if path.is_file() or file_format(path) in (*FORMATS, ".txt"):
        config = replace(config, skip_bad_rows=config.skip_bad_rows or file_format(path) == ".txt")  # blank lines
        examples = load_texts(path, config, task_type=task_type)
    else:
        tables = find_sources(replace(config, data=source), config.task, task_type)
        found = tables.train or next(iter(tables.dev.values()))
        table, columns = open_texts(Path(found.name), config, task_type=task_type, open_table=lambda path: found)
        examples = read_examples(table, columns, row_parser(task_type), skip_bad_rows=config.skip_bad_rows).examples
    warn_about_skipped_rows({source: examples})
    return examples


def _tokenize(checkpoint: LoadedCheckpoint, examples: Examples) -> TokenizedExamples:
    """As for predictions; for a task with pairs, single texts will do."""
    task = checkpoint.task
    if task is not None and task.has_pairs and examples.pairs is None:
        return tokenize_texts(examples, checkpoint.tokenizer, max_length=checkpoint.max_length, use_cache=False)
    return checkpoint.tokenize(examples)


def _kept_ids(
    tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel, used: np.ndarray, *, all_characters: bool
) -> np.ndarray:
    """The ids of the tokens to keep, in rising order."""
    spec = _tokenizer_spec(tokenizer)
    model, added = spec["model"], [token["id"] for token in spec["added_tokens"]]
    tokens = {token: index for token, index in tokenizer.get_vocab().items() if index not in {*added}}
    names = {index: token for token, index in tokens.items()}
    needed = {names[index] for index in used.tolist() if index in names}
    scripts = {"", *(_script(character) for token in needed for character in token)}
    prefix = model.get("continuing_subword_prefix") or ""
    for token in tokens:
        character = token.removeprefix(prefix)
        is_wanted = all_characters or model["type"] == "BPE" or _script(character[:1]) in scripts
        if (len(character) == 1 and is_wanted) or _BYTE_TOKEN.fullmatch(token):
            needed.add(token)
    if model["type"] == "BPE":
        needed |= _merge_parts(needed, model["merges"])
    needed |= {model.get("unk_token")} & tokens.keys()
    kept = {*added, *(tokens[token] for token in needed)} | {*_special_ids(network).values()}
    if model["type"] == "Unigram":  # the score of unknown characters follows from the lowest one
        scores = [score for _, score in model["vocab"]]
        kept |= {scores.index(min(scores)), *([] if model["unk_id"] is None else [model["unk_id"]])}
    if FAMILIES[network.config.model_type].positions_follow_padding:
        kept |= {*range(network.config.pad_token_id)}  # positions start behind this id, so it must not change
    return np.array(sorted(kept))


def _tokenizer_spec(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of ``tokenizer.json``."""
    spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]  # a fast one
    model = spec["model"]
    suffixed = model["type"] == "BPE" and (model["continuing_subword_prefix"] or model["end_of_word_suffix"])
    if model["type"] not in ("WordPiece", "BPE", "Unigram") or suffixed:
        name = f"{model['type']} with marks inside words" if suffixed else model["type"]
        raise ConfigError(f"the tokenizer is {name}; a vocabulary is chosen for WordPiece, byte-level BPE or Unigram")
    return spec


def _script(character: str) -> str:
    """The script of a letter or mark, the first word of its Unicode name; "" for other characters."""
    is_letter = character != "" and unicodedata.category(character)[0] in "LM"
    return unicodedata.name(character, "").partition(" ")[0] if is_letter else ""


def _merge_parts(tokens: Iterable[str], merges: Iterable[Iterable[str]]) -> set[str]:
    """What BPE makes on its way from characters to these tokens."""
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    made = set()
    for token in tokens:
        parts = list(token)
        while known := [(ranks[pair], index) for index, pair in enumerate(pairwise(parts)) if pair in ranks]:
            index = min(known)[1]
            parts[index : index + 2] = ["".join(parts[index : index + 2])]
            made.add(parts[index])
    return made


def _special_ids(network: PreTrainedModel) -> dict[str, int]:
    """The token ids in the config, by option."""
    options = network.config.to_dict().items()
    return {name: value for name, value in options if name.endswith("_token_id") and isinstance(value, int)}


def _rebuild_tokenizer(tokenizer: PreTrainedTokenizerBase, new_ids: np.ndarray) -> PreTrainedTokenizerBase:
    """The tokenizer with the ids that are not -1, loaded as the export will be."""
    spec = _tokenizer_spec(tokenizer)
    model = spec["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if new_ids[index] >= 0]
        if model["unk_id"] is not None:
            model["unk_id"] = int(new_ids[model["unk_id"]])
    else:
        model["vocab"] = {name: int(new_ids[index]) for name, index in model["vocab"].items() if new_ids[index] >= 0}
    if model["type"] == "BPE":
        known = model["vocab"].keys()
        model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= known]
    for token in spec["added_tokens"]:
        token["id"] = int(new_ids[token["id"]])
    processor = spec["post_processor"] or {}
    for part in (processor, *processor.get("processors", ())):
        for special in part.get("special_tokens", {}).values():
            special["ids"] = new_ids[special["ids"]].tolist()
        for name in {"cls", "sep"} & part.keys():
            part[name][1] = int(new_ids[part[name][1]])
    if spec["padding"]:
        spec["padding"]["pad_id"] = int(new_ids[spec["padding"]["pad_id"]])
    with tempfile.TemporaryDirectory(prefix="limbert-") as folder:
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
        reloaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return reloaded


def _embeddings(network: PreTrainedModel) -> Tensor:
    """The table of token embeddings, ``(tokens, hidden)``."""
    weight = network.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _select_embeddings(network: PreTrainedModel, kept: np.ndarray, new_ids: np.ndarray) -> PreTrainedModel:
    """A copy of the network with these rows of the embedding table only."""
    smaller = copy.deepcopy(network)
    for name, value in _special_ids(network).items():
        setattr(smaller.config, name, int(new_ids[value]))
    smaller.config.vocab_size = len(kept)
    table = _embeddings(smaller)[torch.from_numpy(kept)]
    smaller.set_input_embeddings(torch.nn.Embedding.from_pretrained(table, padding_idx=smaller.config.pad_token_id))
    return smaller


def _require_equal_logits(
    network: PreTrainedModel, smaller: PreTrainedModel, new_ids: Tensor, examples: TokenizedExamples
) -> None:
    source, reduced = load_runtime("torch", network), load_runtime("torch", smaller)

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        return reduced.run({**inputs, "input_ids": new_ids[inputs["input_ids"]]})

    require_parity(compare_outputs(source, Runtime(reduced.input_names, run), parity_batches(examples)))


def _held_out_cost(
    checkpoint: LoadedCheckpoint,
    reduced: LoadedCheckpoint,
    network: PreTrainedModel,
    smaller: PreTrainedModel,
    config: DataConfig,
) -> dict[str, Any]:
    """Fields of `VocabularyReduction` that the development set decides; nothing without one."""
    task = checkpoint.task
    if task is None:
        return {}
    try:
        examples = next(iter(load_evaluation_data(config, task).values()))
    except (DataError, ConfigError):
        return {}

    def metrics(own: PreTrainedModel, tokens: TokenizedExamples) -> dict[str, float]:
        logits = runtime_logits(load_runtime("torch", own), tokens, batch_size=_BATCH_SIZE)
        return compute_task_metrics(task, logits, tokens)

    before, after = checkpoint.tokenize(examples), reduced.tokenize(examples)
    known = {*reduced.tokenizer.get_vocab()}
    counts = np.bincount(before.tokens.ids)
    ids = np.flatnonzero(counts)
    is_dropped = [name not in known for name in checkpoint.tokenizer.convert_ids_to_tokens(ids.tolist())]
    return {
        "dropped_share": float(counts[ids][is_dropped].sum() / counts.sum()),
        "metrics_before": metrics(network, before),
        "metrics_after": metrics(smaller, after),
    }
