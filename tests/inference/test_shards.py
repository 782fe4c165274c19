"""Input files are split the same way every time, and each row is read once."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tests.factories.batch_jobs import make_texts, write_parquet

from limbert.core.config import DataConfig
from limbert.data.readers import parse_text_row, read_examples
from limbert.data.table import Table, open_table
from limbert.data.tasks import Columns
from limbert.errors import ConfigError, DataError
from limbert.inference.shards import ShardedInput, ShardReader, shard_input

TEXTS = make_texts(101)


def shard(path: Path, max_shard_rows: int = 7, text_column: str | None = None, **changes: Any) -> ShardedInput:
    options = {"keep_columns": None, "prediction_columns": ("label", "score"), "max_shard_rows": max_shard_rows}
    return shard_input(str(path), DataConfig(text_column=text_column), **options | changes)


def read_rows(inputs: ShardedInput, order: list[int] | None = None) -> list[tuple[Any, ...]]:
    """The text and the kept columns of all rows, read in some order of the shards."""
    reader, rows = ShardReader(inputs, skip_bad_rows=False), {}
    for index in order or range(len(inputs.shards)):
        kept, indices, examples = reader.read(inputs.shards[index])
        assert indices == [*range(inputs.shards[index].rows)]
        columns = [kept.column(name).to_pylist() for name in inputs.schema.names]
        rows[index] = [*zip(examples.texts, *columns, strict=True)]
    return [row for index in sorted(rows) for row in rows[index]]


@pytest.mark.parametrize(
    ("files", "row_group", "max_shard_rows"), [(1, 1000, 7), (3, 5, 7), (3, 7, 50), (2, 10, 10), (1, 3, 101)]
)
def test_every_row_is_read_once(tmp_path: Path, files: int, row_group: int, max_shard_rows: int) -> None:
    write_parquet(tmp_path / "in", TEXTS, files=files, row_group=row_group)
    inputs = shard(tmp_path / "in", max_shard_rows)
    assert inputs.rows == 101
    assert inputs == shard(tmp_path / "in", max_shard_rows)
    assert [part.name for part in inputs.shards] == sorted(part.name for part in inputs.shards)
    forward = [*range(len(inputs.shards))]
    for order in (forward, forward[::-1], forward[::2] + forward[1::2]):
        assert read_rows(inputs, order) == [(text, number, text) for number, text in enumerate(TEXTS)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
def test_text_files_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    delimiter = {"csv": ",", "tsv": "\t"}.get(suffix, "")
    lines = [json.dumps({"text": text, "id": number}) for number, text in enumerate(TEXTS)]
    if delimiter:
        lines = [f"text{delimiter}id", *(f"{text}{delimiter}{number}" for number, text in enumerate(TEXTS))]
    path = tmp_path / f"in.{suffix}"
    path.write_text("\n".join(TEXTS if suffix == "txt" else lines) + "\n", encoding="utf-8")
    inputs = shard(path)
    backward = [*range(len(inputs.shards))][::-1]
    ids = [()] * 101 if suffix == "txt" else [(str(number),) for number in range(101)]
    assert read_rows(inputs) == read_rows(inputs, backward) == [(text, text, *ids[n]) for n, text in enumerate(TEXTS)]


def read_plainly(path: Path, columns: Columns) -> list[object]:
    """The texts of each row as the plain engine reads them, or its error message."""
    table, found = open_table(path), list[object]()
    for row in table.rows():
        one = Table(table.name, table.columns, lambda row=row: iter([row]))  # type: ignore[misc]
        try:
            raw = read_examples(one, columns, parse_text_row, skip_bad_rows=False).examples
            found.append((*raw.texts, *(raw.pairs or ())))
        except DataError as error:
            found.append(str(error))
    return found


def check_against_plain(path: Path, columns: Columns) -> list[object]:
    """The plain engine's texts or messages, after a comparison with those of batch prediction."""
    config = DataConfig(text_column=columns.text, pair_column=columns.pair)
    options: dict[str, Any] = {"keep_columns": None, "prediction_columns": ()}
    plain = read_plainly(path, columns)
    inputs = shard_input(str(path), config, max_shard_rows=100, **options)
    kept, indices, examples = ShardReader(inputs, skip_bad_rows=True).read(inputs.shards[0])
    assert kept.num_rows == len(plain) == inputs.rows
    texts = zip(examples.texts, *([examples.pairs] if examples.pairs else []), strict=True)
    usable = {index: row for index, row in enumerate(plain) if isinstance(row, tuple)}
    assert dict(zip(indices, texts, strict=True)) == usable
    one_row = shard_input(str(path), config, max_shard_rows=1, **options)
    reader = ShardReader(one_row, skip_bad_rows=False)
    for part, row in zip(one_row.shards, plain, strict=True):
        if isinstance(row, str):
            with pytest.raises(DataError) as raised:
                reader.read(part)
            assert str(raised.value) == f"{row} (or --skip-bad-rows)"
    return plain


def test_json_rows_are_refused_as_without_ray(tmp_path: Path) -> None:
    values = ["one two", ["a", "b"], {"x": 1}, 5, 0.5, False, None, " ", ["a"]]
    pairs = ["three", "four", "five", "six", "seven", "eight", 9, [10], {"y": 2}]
    lines: list[dict[str, object]] = [
        {"a": text, "b": pair, "id": [number]} for number, (text, pair) in enumerate(zip(values, pairs, strict=True))
    ]
    lines += [{"a": "one", "b": True}, {"b": "one"}, {"a": "one"}]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[]\n", encoding="utf-8")
    plain = check_against_plain(path, Columns("a", "b", None))
    assert [index for index, row in enumerate(plain) if isinstance(row, str)] == [*range(1, 13)]
    inputs = shard(path, 100, "a", keep_columns=("id", "a"))
    kept, _, _ = ShardReader(inputs, skip_bad_rows=True).read(inputs.shards[0])
    assert kept.to_pylist()[1] == {"id": "[1]", "a": '["a", "b"]'}, "the output repeats values as JSON"


@pytest.mark.parametrize(
    ("column", "is_text"),
    [
        (pyarrow.array([["a"], ["b", "c"]]), False),
        (pyarrow.array([1, 2]), False),
        (pyarrow.array([{"x": 1}, None]), False),
        (pyarrow.array([b"one", b"two"]), False),
        (pyarrow.nulls(2), False),
        (pyarrow.array(["one", None], pyarrow.large_string()), True),
        (pyarrow.array(["one", "two"], pyarrow.string_view()), True),
        (pyarrow.array(["one", "one"]).dictionary_encode(), True),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)
def test_parquet_types_are_read_as_without_ray(tmp_path: Path, column: pyarrow.Array, is_text: bool) -> None:
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": column, "id": [0, 1]}), path)
    first, _ = check_against_plain(path, Columns("a", None, None))
    assert first == ("one",) if is_text else isinstance(first, str)


def test_class_ids_are_read_as_names(tmp_path: Path) -> None:
    """In files that ``datasets`` wrote, a class may be the second text: an aspect, for example."""
    classes = {"info": {"features": {"b": {"_type": "ClassLabel", "names": ["price", "taste"]}}}}
    table = pyarrow.table({"a": ["one", "two", "three"], "b": [1, 0, 7]})
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(classes)}), path)
    assert check_against_plain(path, Columns("a", "b", None))[:2] == [("one", "taste"), ("two", "price")]


def write_json(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_late_json_keys_are_columns(tmp_path: Path) -> None:
    rows = [{"text": f"row {row}"} | ({"id": row} if row > 149 else {}) for row in range(200)]
    write_json(tmp_path / "in" / "a.jsonl", rows)
    write_json(tmp_path / "in" / "b.jsonl", [{"text": "row 200"}, {"text": "row 201", "note": "last"}])
    write_json(tmp_path / "in" / "c.jsonl", [{"note": "before", "text": "row 202"}])
    inputs = shard(tmp_path / "in", 160)
    assert inputs.schema.names == ["text", "id", "note"]
    ids = [str(row) if 149 < row < 200 else None for row in range(203)]
    notes = {201: "last", 202: "before"}
    assert read_rows(inputs) == [(f"row {n}", f"row {n}", ids[n], notes.get(n)) for n in range(203)]
    assert shard(tmp_path / "in", keep_columns=("id",)).schema.names == ["id"]
    with pytest.raises(ConfigError, match="'note'"):
        shard(tmp_path / "in", prediction_columns=("note",))
    write_json(tmp_path / "in" / "d.jsonl", [{"id": 203}])
    with pytest.raises(DataError, match=r"d\.jsonl: column 'text'"):
        shard(tmp_path / "in")


def test_columns_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", TEXTS, files=2, row_group=10)
    later = tmp_path / "in" / "texts-2.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"note": ["only here"], "text": ["one more"]}), later)
    rows = [(text, number, text, None) for number, text in enumerate(TEXTS)]  # a column that files lack is empty
    assert read_rows(shard(tmp_path / "in")) == [*rows, ("one more", None, "one more", "only here")]
    with pytest.raises(ConfigError, match="--keep 'name'"):
        shard(tmp_path / "in", keep_columns=("name",))
    with pytest.raises(ConfigError, match="'id'"):
        shard(tmp_path / "in", prediction_columns=("id",))
    pyarrow.parquet.write_table(pyarrow.table({"id": ["one"], "text": ["of another type"]}), later)
    with pytest.raises(DataError, match=r"texts-2\.parquet: .*id.*int64.*--keep"):
        shard(tmp_path / "in")
    assert shard(tmp_path / "in", prediction_columns=("id",), keep_columns=("text",)).schema.names == ["text"]
    (tmp_path / "twice.csv").write_text("a,x,x\none two,1,2\n")
    with pytest.raises(DataError, match="duplicate"):
        shard(tmp_path / "twice.csv", 100, "a", keep_columns=None)
    assert shard(tmp_path / "twice.csv", 100, "a", keep_columns=("a",)).schema.names == ["a"]


def test_large_rows_make_small_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", [text + 2**21 * "x" for text in TEXTS[:40]], files=1, row_group=10)
    footer = pyarrow.parquet.read_metadata(tmp_path / "in" / "texts-0.parquet")
    assert sum(footer.row_group(group).total_byte_size for group in range(4)) > 80 * 2**20
    assert max(part.rows for part in shard(tmp_path / "in", 1000).shards) <= 32


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_file_that_shrank_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.{suffix}"

    def write(texts: list[str]) -> None:
        if suffix == "csv":
            path.write_text("\n".join(["text", *texts]) + "\n")
        else:
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)

    write(TEXTS)
    inputs = shard(path)
    write(TEXTS[:20])
    for part in inputs.shards[2:4]:
        with pytest.raises(DataError, match="has changed"):
            ShardReader(inputs, skip_bad_rows=False).read(part)
