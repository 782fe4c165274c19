"""Candidates are what the stock model says at the mask, and one piece means the same for every kind of tokenizer."""

from pathlib import Path

import pytest
import torch
from tests.factories.networks import MOST_DIFFERENT, VOCABULARY, make_network
from tests.factories.tokenizers import byte_level, sentence_piece
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from limbert.augment.candidates import MaskedText, WordCandidateGenerator, load_masked_lm, mask_logits
from limbert.augment.sampling import ReplaceableWord
from limbert.augment.words import FUNCTION_WORDS
from limbert.errors import CheckpointError
from limbert.model.sparse_prediction import enable_sparse_prediction


@pytest.mark.parametrize("case", [*MOST_DIFFERENT, "roberta", "electra"])
def test_the_head_at_the_mask_alone_answers_as_everywhere(case: str) -> None:
    network = make_network(case, AutoModelForMaskedLM)
    enable_sparse_prediction(network)
    generator = torch.Generator().manual_seed(1)
    masks = [
        MaskedText(tuple(torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()), length // 2, 7, "word")
        for length in (9, 4, 12)
    ]
    with torch.no_grad():
        found = mask_logits(network, masks, pad_id=0)
        for row, mask in zip(found, masks, strict=True):
            alone = network(input_ids=torch.tensor([mask.input_ids])).logits[0, mask.mask_index]
            torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)
        again = network(input_ids=torch.tensor([masks[0].input_ids])).logits
    assert again.shape[1] == 9  # the network is as before


def make_lm(tokenizer: PreTrainedTokenizerFast, case: str) -> PreTrainedModel:
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 1}
    network = make_network(case, AutoModelForMaskedLM, vocab_size=len(tokenizer), **special)
    enable_sparse_prediction(network)
    return network


def chooser(
    tokenizer: PreTrainedTokenizerFast, network: PreTrainedModel, *, context: int = 64
) -> WordCandidateGenerator:
    return WordCandidateGenerator(
        network,
        tokenizer,
        neighbours=None,
        stop_words=FUNCTION_WORDS,
        num_candidates=4,
        max_tokens=context,
        precision="fp32",
    )


@pytest.mark.parametrize("kind", ["trimmed", "untrimmed", "sentence pieces"])
@torch.no_grad()
def test_one_piece_is_masked_and_others_have_neighbours(kind: str) -> None:
    tokenizer = sentence_piece() if kind == "sentence pieces" else byte_level(trim=kind == "trimmed")
    network = make_lm(tokenizer, "roberta")
    text = "the dog, a catdog dog"
    (found,), masked = chooser(tokenizer, network).generate([text])
    assert [text[choice.start : choice.end] for choice in found] == ["dog", "catdog", "dog"]
    assert masked == 2
    ids = tokenizer(text)["input_ids"]
    entry = tokenizer.convert_tokens_to_ids("▁dog" if kind == "sentence pieces" else "Ġdog")
    words = {tokenizer.decode([place]).strip(): place for place in range(4, len(tokenizer))}
    spaced = {
        place
        for word, place in words.items()
        if word.isalpha() and tokenizer.encode(f" {word}", add_special_tokens=False) == [place]
    }
    for choice, place in ((found[0], ids.index(entry)), (found[2], len(ids) - 1 - ids[::-1].index(entry))):
        seen = [*ids]
        seen[place] = tokenizer.mask_token_id
        logits = network(input_ids=torch.tensor([seen])).logits[0, place]
        best = sorted(spaced - {entry}, key=lambda token: -logits[token])[:4]
        assert [*choice.candidates] == [tokenizer.decode([token]).strip() for token in best]
    pieces = tokenizer(" catdog", add_special_tokens=False)["input_ids"]
    weights = torch.nn.functional.normalize(network.get_input_embeddings().weight)
    mean = network.get_input_embeddings().weight[pieces].mean(dim=0)
    near = sorted(spaced, key=lambda token: -float(weights[token] @ mean))[:4]
    assert [*found[1].candidates] == [tokenizer.decode([token]).strip() for token in near]


def test_a_long_text_is_seen_through_a_window() -> None:
    tokenizer = byte_level(trim=True)
    network = make_lm(tokenizer, "roberta")
    text = " ".join(["dog", "cat"] * 40)
    ((*found,),), masked = chooser(tokenizer, network, context=10).generate([text])
    assert masked == 79  # the first word, without a space before it, is three pieces
    assert all(isinstance(choice, ReplaceableWord) and len(choice.candidates) == 4 for choice in found[1:])
    repeated = {choice.candidates for choice in found[21:-20:2]}  # the same eight tokens around each of these
    assert len(repeated) == 1


def test_answers_do_not_depend_on_the_other_texts() -> None:
    tokenizer = byte_level(trim=True)
    texts = ["a dog", "the cat ran, the dog sat" * 3, "cat (dog)"]
    one = chooser(tokenizer, make_lm(tokenizer, "roberta"))
    assert one.generate(texts)[0] == [one.generate([text])[0][0] for text in texts]


def test_what_is_no_masked_language_model_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(trim=True)
    make_lm(tokenizer, "roberta").base_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks the weights lm_head"):
        load_masked_lm(str(tmp_path))
    make_lm(tokenizer, "roberta").save_pretrained(tmp_path)
    load_masked_lm(str(tmp_path))
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="with a mask"):
        load_masked_lm(str(tmp_path))
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_masked_lm(str(tmp_path / "absent"))
