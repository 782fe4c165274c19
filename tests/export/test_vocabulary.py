"""A smaller vocabulary: the same tokens and logits on the texts that chose it, and a way to split any other text."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.factories.networks import make_network
from tests.factories.runs import DEMO_DATA
from tests.factories.tokenizers import trained
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from limbert.core.config import DataConfig
from limbert.errors import ConfigError, DataError, ExportError
from limbert.export import vocabulary
from limbert.export.vocabulary import reduce_vocabulary
from limbert.inference.load import LoadedCheckpoint, load_checkpoint
from limbert.method.calibration import calibrated_network

with (DEMO_DATA / "train.csv").open(newline="") as file:
    TEXTS = [row["text"] for row in csv.DictReader(file)]
CHOSEN = TEXTS[::20]  # decide the vocabulary
FAMILIES = {"bert": "WordPiece", "roberta": "BPE", "modernbert": "BPE", "xlm-roberta": "Unigram"}


def make_checkpoint(folder: Path, family: str, tokenizer: PreTrainedTokenizerBase) -> LoadedCheckpoint:
    """A small random network with this tokenizer; its table has more rows than the tokenizer has tokens."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    make_network(family, vocab_size=len(tokenizer) + 3, **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_checkpoint(folder)


@pytest.fixture
def chosen_file(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(CHOSEN))  # blank lines are no texts
    return str(path)


@pytest.fixture(params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedCheckpoint:
    family = request.param
    if family == "bert":
        return make_checkpoint(tmp_path, family, request.getfixturevalue("tokenizer"))
    own = trained(FAMILIES[family], TEXTS, specials_last=family == "modernbert")
    return make_checkpoint(tmp_path, family, own)


def full_network(checkpoint: LoadedCheckpoint) -> PreTrainedModel:
    return calibrated_network(checkpoint.model, checkpoint.model.full)


@torch.no_grad()
def logits(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
    return network(**inputs).logits


def test_chosen_texts_keep_tokens_and_logits(checkpoint: LoadedCheckpoint, chosen_file: str, tmp_path: Path) -> None:
    network = full_network(checkpoint)
    reduced, smaller, result = reduce_vocabulary(checkpoint, network, chosen_file, DataConfig())
    assert result.texts == len(CHOSEN)
    assert result.tokens_before == checkpoint.model.config.vocab_size
    assert result.tokens_after == len(reduced.tokenizer) == smaller.config.vocab_size < result.tokens_before
    assert result.bytes_saved == 4 * 48 * (result.tokens_before - result.tokens_after)
    reduced.tokenizer.save_pretrained(tmp_path / "saved")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in CHOSEN:
        assert reloaded.tokenize(text) == checkpoint.tokenizer.tokenize(text)
    torch.testing.assert_close(
        logits(smaller, reloaded, CHOSEN), logits(network, checkpoint.tokenizer, CHOSEN), rtol=0, atol=0
    )


def test_kept_tokens_keep_order_and_meaning(checkpoint: LoadedCheckpoint, chosen_file: str) -> None:
    network = full_network(checkpoint)
    reduced, smaller, _ = reduce_vocabulary(checkpoint, network, chosen_file, DataConfig())
    old, new = checkpoint.tokenizer.get_vocab(), reduced.tokenizer.get_vocab()
    names = sorted(new, key=lambda name: new[name])
    assert [new[name] for name in names] == [*range(len(new))]
    assert (np.diff([old[name] for name in names]) > 0).all()
    before, after = network.get_input_embeddings(), smaller.get_input_embeddings()
    for name in names[::50]:
        assert torch.equal(after.weight[new[name]], before.weight[old[name]])
    assert reduced.tokenizer.special_tokens_map == checkpoint.tokenizer.special_tokens_map
    assert smaller.config.pad_token_id == reduced.tokenizer.pad_token_id


def test_other_texts_are_split_further(checkpoint: LoadedCheckpoint, chosen_file: str) -> None:
    reduced, _, _ = reduce_vocabulary(checkpoint, full_network(checkpoint), chosen_file, DataConfig())
    old, new = checkpoint.tokenizer, reduced.tokenizer
    differ = 0
    for text in [*TEXTS[1::20], "qzxv jwky"]:
        before, after = old.tokenize(text), new.tokenize(text)
        assert "".join(after).replace("##", "") == "".join(before).replace("##", "")
        assert set(after) <= {*old.get_vocab()}
        assert len(after) >= len(before)
        differ += before != after
    assert differ
    for text in ("☃", "a☃"):  # no token of WordPiece and Unigram
        assert new.tokenize(text) == old.tokenize(text)


def test_letters_of_other_scripts_may_go(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, chosen_file: str) -> None:
    checkpoint = make_checkpoint(tmp_path, "bert", tokenizer)
    network = full_network(checkpoint)
    everything, _, _ = reduce_vocabulary(checkpoint, network, chosen_file, DataConfig())
    latin, _, result = reduce_vocabulary(checkpoint, network, chosen_file, DataConfig(), characters="texts")
    text = "ждл £7 qzxv"
    assert everything.tokenizer.tokenize(text)[:3] == ["ж", "##д", "##л"]
    assert latin.tokenizer.tokenize(text) == ["[UNK]", *everything.tokenizer.tokenize(text)[3:]]
    assert result.tokens_after < len(everything.tokenizer) - 500


def test_a_wrong_tokenizer_is_refused(
    checkpoint: LoadedCheckpoint, chosen_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild = vocabulary._rebuild_tokenizer

    def drop_last(tokenizer: PreTrainedTokenizerBase, new_ids: np.ndarray) -> PreTrainedTokenizerBase:
        used = max(checkpoint.tokenizer(CHOSEN[0], add_special_tokens=False)["input_ids"])
        return rebuild(tokenizer, np.where(np.arange(len(new_ids)) == used, -1, new_ids))

    monkeypatch.setattr(vocabulary, "_rebuild_tokenizer", drop_last)
    with pytest.raises(ExportError):
        reduce_vocabulary(checkpoint, full_network(checkpoint), chosen_file, DataConfig())


def test_bad_input_is_refused(tmp_path: Path, chosen_file: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "bpe", "roberta", trained("BPE", TEXTS))
    network = full_network(checkpoint)
    (tmp_path / "one.txt").write_text(CHOSEN[0])
    reduced, _, result = reduce_vocabulary(checkpoint, network, str(tmp_path / "one.txt"), DataConfig())
    assert result.texts == 1  # one is enough
    assert reduced.tokenizer.tokenize(CHOSEN[0]) == checkpoint.tokenizer.tokenize(CHOSEN[0])
    with pytest.raises(DataError, match="nowhere"):
        reduce_vocabulary(checkpoint, network, "./nowhere", DataConfig())
    with pytest.raises(ConfigError, match="MaskedLM"):
        reduce_vocabulary(checkpoint, make_network("roberta", AutoModelForMaskedLM), chosen_file, DataConfig())
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "card": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    checkpoint = make_checkpoint(tmp_path / "words", "bert", tokenizer)
    with pytest.raises(ConfigError, match="WordLevel"):
        reduce_vocabulary(checkpoint, full_network(checkpoint), chosen_file, DataConfig())
