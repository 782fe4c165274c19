"""Text becomes full sequences without losing a token, and words are hidden as told."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from transformers import PreTrainedTokenizerBase

from limbert.core.config import CorpusConfig
from limbert.data.mlm.corpus import corpus_files, stream_text
from limbert.data.mlm.masking import (
    MaskedSequences,
    Permutation,
    ShuffledBatches,
    TokenMasking,
    derive_keys,
    split_validation_sequences,
    uniform_at,
)
from limbert.data.mlm.packing import PackedSequences, TokenStream, load_token_stream, pack_sequences
from limbert.errors import ConfigError, DataError

TEXT = "anthropomorphic lobsters unquestionably disliked electroencephalography in Reykjavik , said 37 of them ."
WORDS = TEXT.split(" ")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_text(lines: int, *, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 30))) for _ in range(lines)]


def stream_of(path: Path, tokenizer: PreTrainedTokenizerBase, **settings: object) -> TokenStream:
    return load_token_stream([str(path)], CorpusConfig(corpus=("-",), **settings), tokenizer)


def test_packing_loses_no_token(tokenizer: PreTrainedTokenizerBase, write: Callable) -> None:
    lines = make_text(2500)  # more than is tokenised at a time
    path = write("text.txt", "\n" + "\n".join(lines) + "\n\n")
    expected = []
    for line in lines:
        expected += [*tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    packed = pack_sequences(stream_of(path, tokenizer), tokenizer, max_length=50)
    ids, starts, real = packed.read(np.arange(len(packed)))
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert real[:-1].all()  # full to the last token
    content = []
    for row, mask in zip(ids, real, strict=True):
        assert row[mask][-1] == tokenizer.sep_token_id
        assert (row[~mask] == tokenizer.pad_token_id).all()
        content += row[mask][1:-1].tolist()
    assert content == expected[:-1]  # separators stand between documents
    words = tokenizer.convert_ids_to_tokens(content)
    flat = starts[:, 1:-1].flatten()[: len(content)]
    inner = np.arange(len(content)) % 48 != 0  # a cut begins a word anew
    assert [word.startswith("##") for word in np.asarray(words)[inner]] == (~flat[inner]).tolist()


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.parquet"])
def test_an_empty_file_holds_nothing(write: Callable, name: str) -> None:
    assert [*stream_text(write(name, ""), CorpusConfig(corpus=("-",)))] == []


def test_documents_end_at_lines_or_at_blank_lines(write: Callable) -> None:
    path = write("text.raw", " \n = Title = \n one .\r\n two .\n\n \nthree\n")
    line = CorpusConfig(corpus=("-",))
    assert [piece for piece in stream_text(path, line) if piece] == ["= Title =", "one .", "two .", "three"]
    paragraph = list(stream_text(path, CorpusConfig(corpus=("-",), documents="paragraph")))
    assert paragraph == [None, "= Title =", "one .", "two .", None, None, "three", None]


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_long_texts_are_cut_between_words(
    ending: str, tokenizer: PreTrainedTokenizerBase, write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["\u00e9lan  unquestionably \u6771\u4eac \U0001f600 " * 40, " short one ", " ".join(make_text(30))]
    lines += [line + " " * 200 + line for line in [*lines, "\u6771" * 300]]
    rows = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    path = write(f"text.{ending}", "\ufeff" + "\r\n".join(lines) if ending == "txt" else rows)
    whole = [line.strip() for line in lines]
    for longest in (97, 1 << 16):
        monkeypatch.setattr("limbert.data.mlm.corpus._MAX_PIECE_CHARS", longest)
        pieces = list(stream_text(path, CorpusConfig(corpus=("-",))))
        assert max(len(piece or "") for piece in pieces) <= longest
        joined = "".join("\n" if piece is None else piece for piece in pieces)
        assert joined.strip("\n").split("\n") == whole
        path.touch()  # else its tokens are found in the cache
        expected = tokenizer(tokenizer.sep_token.join(whole), add_special_tokens=False)["input_ids"]
        assert stream_of(path, tokenizer).ids.tolist() == expected
    assert [piece for piece in pieces if piece] == whole


def test_a_long_line_is_never_held_whole(write: Callable) -> None:
    path = write("one.txt", " ".join(make_text(4000) * 10))
    tracemalloc.start()
    try:
        pieces = sum(piece is not None for piece in stream_text(path, CorpusConfig(corpus=("-",))))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pieces > 5
    assert held < path.stat().st_size / 4


def test_bytes_that_are_no_text_in_a_long_line(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbert.data.mlm.corpus._MAX_PIECE_CHARS", 10)
    path = write("text.txt", b"fine\n" + b"one two " * 4 + b"\xff three\nfine again")
    with pytest.raises(DataError, match=r"text.txt:2: the bytes are not UTF-8"):
        list(stream_text(path, CorpusConfig(corpus=("-",))))
    pieces = list(stream_text(path, CorpusConfig(corpus=("-",), skip_bad_rows=True)))
    documents = "".join(piece or "|" for piece in pieces).split("|")
    assert documents[0] == "fine"
    assert documents[1].startswith("one two one two one two")
    assert documents[2] == "fine again"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_column_of_text_is_a_corpus(ending: str, tmp_path: Path, write: Callable) -> None:
    if ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "body": ["one text", "two"]}), tmp_path / "x.parquet")
    elif ending == "jsonl":
        write("x.jsonl", "".join(json.dumps({"id": 1, "body": text}) + "\n" for text in ("one text", "two")))
    else:
        write("x.csv", "id,body\n1,one text\n2,two\n")
    path = tmp_path / f"x.{ending}"
    found = list(stream_text(path, CorpusConfig(corpus=("-",), text_column="body")))
    assert found == ["one text", None, "two", None, None]
    with pytest.raises(DataError, match="no column 'text'; it has 'id', 'body'"):
        list(stream_text(path, CorpusConfig(corpus=("-",), text_column="text")))


def test_files_folders_and_globs(write: Callable, tmp_path: Path) -> None:
    paths = [write(name, "x") for name in ("a.txt", "b.txt", "deep/c.raw")]
    assert corpus_files([str(tmp_path / "b.txt"), str(tmp_path / "*.txt")]) == (paths[1], paths[0])
    assert corpus_files([str(tmp_path / "deep")]) == (paths[2],)
    assert corpus_files([str(tmp_path / "**" / "*.raw")]) == (paths[2],)
    write("deep/.git/config", "x")
    assert corpus_files([str(tmp_path / "deep")]) == (paths[2],)
    with pytest.raises(DataError, match="no such file, and no folder or glob with files in it"):
        corpus_files([str(tmp_path / "none-*.txt")])


def test_a_file_counts_once_and_development_text_not_at_all(write: Callable, tmp_path: Path) -> None:
    one, two = write("texts/a.txt", "x"), write("texts/b.txt", "y")
    (tmp_path / "linked").symlink_to(tmp_path / "texts")
    names = [str(tmp_path / name) for name in ("texts", "texts/../texts/a.txt", "linked/*.txt", "linked")]
    assert corpus_files(names) == (one, two)
    apart = [tmp_path / "linked" / "b.txt"]
    assert corpus_files([names[0], names[2]], exclude=apart) == (one,)
    with pytest.raises(ConfigError, match=r"b.txt is development text too; it must be one or the other"):
        corpus_files([names[0], str(two)], exclude=apart)


def test_bad_input_is_named(tokenizer: PreTrainedTokenizerBase, write: Callable, cache: Path) -> None:
    broken = write("broken.txt", b"fine\n\xff\xfe\nfine again\n")
    with pytest.raises(DataError, match=r"broken.txt:2: the bytes are not UTF-8"):
        stream_of(broken, tokenizer)
    assert not [*cache.rglob("*.bin")]  # nothing half-written
    assert len(stream_of(broken, tokenizer, skip_bad_rows=True).ids) == 4
    half = write("half.jsonl", '{"text": "fine"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(DataError, match=r"half.jsonl:2: invalid Unicode .* in column 'text'"):
        stream_of(half, tokenizer)
    assert len(stream_of(half, tokenizer, skip_bad_rows=True).ids) == 1
    with pytest.raises(DataError, match="corpus is ''; it must be"):
        corpus_files([""])  # and not the folder that one happens to be in
    with pytest.raises(DataError, match="no text in the corpus"):
        stream_of(write("blank.txt", " \n\n"), tokenizer)
    with pytest.raises(ConfigError, match=r"mask share is 0.9; it must be above 0 and at most 0.5"):
        CorpusConfig(corpus=("-",), mask_share=0.9)


def test_tokens_are_found_again_on_disk(tokenizer: PreTrainedTokenizerBase, write: Callable, cache: Path) -> None:
    path = write("text.txt", "\n".join(make_text(20)))
    first = stream_of(path, tokenizer)
    assert isinstance(first.ids, np.memmap)
    expected = first.ids.copy()
    written = [(file, file.stat().st_mtime_ns) for file in sorted(cache.rglob("*.bin"))]
    again = stream_of(path, tokenizer)
    assert [(file, file.stat().st_mtime_ns) for file in sorted(cache.rglob("*.bin"))] == written
    assert np.array_equal(again.ids, expected)
    next(cache.rglob("ids.bin")).write_bytes(b"1234")
    assert np.array_equal(stream_of(path, tokenizer).ids, expected)  # a broken cache is built anew
    path.write_text("other words\n")
    assert len(stream_of(path, tokenizer).ids) == 2


def make_rows(tokenizer: PreTrainedTokenizerBase, path: Path, *, whole_word: bool = False) -> MaskedSequences:
    packed = pack_sequences(stream_of(path, tokenizer), tokenizer, max_length=66)
    masking = TokenMasking.from_tokenizer(tokenizer, mask_fraction=0.15, whole_word=whole_word)
    return split_validation_sequences(packed, masking, num_splits=2, fraction=0.1, max_sequences=1000, seed=3)[0]


def shown_and_asked(rows: MaskedSequences, epoch: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All rows in an epoch: true ids, word starts, shown ids, and what is asked for."""
    batch = rows.prepare_inputs(rows.collate(range(epoch * len(rows), (epoch + 1) * len(rows))))
    ids, starts, _ = rows.packed.read(rows.permutation(np.arange(rows.start, rows.start + rows.count)))
    asked = np.zeros(ids.size, dtype=bool)
    asked[batch["positions"].numpy()] = True
    assert np.array_equal(ids.flatten()[asked], batch["labels"].numpy())
    return ids, starts, batch["input_ids"].numpy(), asked.reshape(ids.shape)


def test_proportions_and_never_special_tokens(tokenizer: PreTrainedTokenizerBase, write: Callable) -> None:
    rows = make_rows(tokenizer, write("text.txt", "\n".join(make_text(1500))))
    ids, _, shown, asked = shown_and_asked(rows)
    special = np.isin(ids, tokenizer.all_special_ids)
    assert special.sum() > 2 * len(rows)  # also inside
    assert not (asked & special).any()
    assert (shown[~asked] == ids[~asked]).all()
    full = (ids != tokenizer.pad_token_id).all(axis=1)
    assert (asked[full].sum(axis=1) == round(0.15 * 64)).all()
    masked, kept = (shown == tokenizer.mask_token_id)[asked].mean(), (shown == ids)[asked].mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)
    swapped = shown[asked & (shown != ids) & (shown != tokenizer.mask_token_id)]
    assert not np.isin(swapped, tokenizer.all_special_ids).any()
    assert len({*swapped.tolist()}) > 0.9 * len(swapped)  # from the whole vocabulary
    assert np.ptp(np.bincount(np.nonzero(asked)[1], minlength=66)[1:-1]) < len(rows) / 3  # anywhere in a sequence


def test_every_epoch_hides_anew_and_the_same_again(tokenizer: PreTrainedTokenizerBase, write: Callable) -> None:
    rows = make_rows(tokenizer, write("text.txt", "\n".join(make_text(300))))
    first, second = shown_and_asked(rows)[3], shown_and_asked(rows, epoch=1)[3]
    assert np.array_equal(first, shown_and_asked(rows)[3])
    assert (first & second).sum() < 0.5 * first.sum()
    assert not np.array_equal(first, shown_and_asked(rows.with_seed(99))[3])
    whole_words = replace(rows, masking=replace(rows.masking, whole_word=True))
    for some in (rows, whole_words):  # whatever is beside it in the batch
        together = some.collate(range(40))
        for row in (0, 7, 39):
            alone = some.collate([row])
            assert all(np.array_equal(alone[name][0], values[row]) for name, values in together.items())


def test_whole_words_are_hidden_whole(tokenizer: PreTrainedTokenizerBase, write: Callable) -> None:
    rows = make_rows(tokenizer, write("text.txt", "\n".join(make_text(600))), whole_word=True)
    ids, starts, _, asked = shown_and_asked(rows)
    inside = ~starts[:, 1:]
    assert inside.sum() > 1000
    assert (asked[:, 1:][inside] == asked[:, :-1][inside]).all()  # a token is asked for with the one before it
    assert not (asked & np.isin(ids, tokenizer.all_special_ids)).any()
    share = asked.sum() / (ids.size - 2 * len(rows))
    assert 0.13 < share < 0.18
    split = make_rows(tokenizer, write("text.txt", "\n".join(make_text(600))))
    asked = shown_and_asked(split)[3]
    assert (asked[:, 1:][inside] != asked[:, :-1][inside]).mean() > 0.1  # the test would see words that are not


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("length", [16, 128])
def test_words_of_every_length_are_hidden_as_often(length: int, whole_word: bool) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.choice([1, 2, 3, 4, 5], size=40_000, p=[0.7, 0.15, 0.07, 0.05, 0.03])
    starts = np.zeros(sizes.sum(), dtype=bool)
    starts[np.cumsum(sizes) - sizes] = True
    stream = TokenStream(np.repeat(sizes, sizes).astype(np.int32), starts)  # a token says how long its word is
    packed = PackedSequences(stream, length, cls_token_id=101, sep_token_id=102, pad_token_id=0)
    masking = TokenMasking(103, np.arange(200, 300), frozenset({0, 101, 102}), 0.15, whole_word)
    rows = MaskedSequences(packed, masking, Permutation(len(packed), seed=1), 0, len(packed), seed=2)
    batch = rows.collate(range(len(rows)))
    ids, _, real = packed.read(rows.permutation(np.arange(len(rows))))
    asked = batch["labels"].numpy() >= 0
    tokens = real.sum(axis=1) - 2
    expected = np.maximum(1, np.round(0.15 * tokens)).sum() / tokens.sum()
    for size in range(1, 6):
        of_size = ids == size
        error = 4 * (0.15 * 0.85 / of_size.sum() * (size if whole_word else 1)) ** 0.5  # four standard errors
        assert asked[of_size].mean() == pytest.approx(expected, abs=error + 0.01)
    asked_a_row = asked[real.all(axis=1)].sum(axis=1)
    assert asked_a_row.min() >= 1
    assert (np.ptp(asked_a_row) > 0) == whole_word


def test_words_longer_than_the_share_are_hidden_one_at_least() -> None:
    masking = TokenMasking(103, np.arange(200, 300), frozenset({101, 102}), 0.15, whole_word=True)
    ids = np.tile([101, 7, 8, 9, 10, 7, 8, 9, 102], (1000, 1))
    starts = np.tile(np.asarray([1, 1, 0, 0, 0, 1, 0, 0, 1], dtype=bool), (1000, 1))
    hidden, shown = masking.mask_tokens(ids, starts, np.ones_like(starts), keys=derive_keys(0, np.arange(1000)))
    first, second = hidden[:, 1:5], hidden[:, 5:8]
    assert (first.all(axis=1) ^ second.all(axis=1)).all()
    assert (first.any(axis=1) ^ second.any(axis=1)).all()
    assert 0.45 < first[:, 0].mean() < 0.55
    assert (shown == ids)[~hidden].all()


def test_drawn_numbers_are_even_and_independent() -> None:
    numbers = uniform_at(derive_keys(3, np.arange(400), np.full(400, 5))[:, None], np.arange(500))
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 0.001
    for one, other in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.01
    again = uniform_at(derive_keys(3, np.asarray([7]), np.asarray([5])), np.asarray([9]))
    assert again == numbers[7, 9]
    others = [derive_keys(seed, np.asarray([row]), np.asarray([epoch]))[0] for seed, row, epoch in np.ndindex(9, 9, 9)]
    assert len({*others}) == 9**3


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65, 1000])
def test_a_shuffle_is_a_permutation(count: int) -> None:
    order = Permutation(count, seed=5)(np.arange(count))
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, Permutation(count, seed=5)(np.arange(count)))
    if count > 60:
        assert not np.array_equal(order, Permutation(count, seed=6)(np.arange(count)))
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.3


def test_shuffled_batches_hold_every_row_once() -> None:
    batches = ShuffledBatches(103, batch_size=10, seed=1, offset=206)
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert sorted(row for batch in batches for row in batch) == list(range(206, 309))
    assert list(batches[2:4]) == [batches[2], batches[3]]
    assert len(ShuffledBatches(10**12, batch_size=32, seed=1)) == 10**12 / 32  # takes no memory


def test_what_is_kept_back_is_never_trained_on(tokenizer: PreTrainedTokenizerBase, write: Callable) -> None:
    packed = pack_sequences(
        stream_of(write("text.txt", "\n".join(make_text(300))), tokenizer), tokenizer, max_length=66
    )
    masking = TokenMasking.from_tokenizer(tokenizer, mask_fraction=0.15, whole_word=False)
    train, kept = split_validation_sequences(packed, masking, num_splits=2, fraction=0.1, max_sequences=5, seed=3)
    parts = [train, *kept]
    rows = [part.permutation(np.arange(part.start, part.start + part.count)).tolist() for part in parts]
    assert [len(part) for part in rows] == [len(packed) - 10, 5, 5]
    assert sorted(row for part in rows for row in part) == list(range(len(packed)))
