"""Input files are found and split the same way every time, and files are written whole or not at all."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tests.factories.batch_jobs import make_texts, write_parquet
from tests.factories.object_store import object_store, use_keys

from limbert.core.config import DataConfig
from limbert.data.readers import Table, open_table, read_raw_examples
from limbert.data.tasks import Columns
from limbert.errors import ConfigError, DataError, StorageError
from limbert.inference.shards import ShardedInput, ShardReader, Storage, shard_input

TEXTS = make_texts(101)


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage.from_uri(str(tmp_path))
    elif request.param == "memory":
        yield Storage.from_uri(f"memory://{tmp_path.name}")
    else:
        use_keys(monkeypatch)
        with object_store({}) as options:
            yield Storage.from_uri(f"s3://bucket/{tmp_path.name}{options}")


def write_files(storage: Storage, *paths: str) -> None:
    for path in paths:
        inner = Storage(storage.filesystem, f"{storage.path}/{path}".rpartition("/")[0])
        inner.write(path.rpartition("/")[2], b"content of " + path.encode())


def list_paths(folder: Storage, pattern: str) -> list[str]:
    """Relative to the folder."""
    files = Storage(folder.filesystem, f"{folder.path}/{pattern}").list_files()
    root = folder.path.strip("/") + "/"
    return [file.path.lstrip("/").removeprefix(root) for file in files]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a1.parquet", "a2.parquet"]),
        ("a[2-9].parquet", ["a2.parquet"]),
        ("a?.parquet", ["a1.parquet", "a2.parquet"]),
        ("a[!1].*", ["a2.parquet"]),
        ("*/*.parquet", ["in/b.parquet"]),
        ("**/*.parquet", ["a1.parquet", "a2.parquet", "in/b.parquet", "in/deeper/c.parquet"]),
        ("*/_odd/*.parquet", ["in/_odd/f.parquet"]),
        ("in/deeper", ["in/deeper/c.parquet"]),
        ("in", ["in/b.parquet", "in/d.csv", "in/deeper/c.parquet"]),
        ("", ["a1.parquet", "a2.parquet", "in/b.parquet", "in/d.csv", "in/deeper/c.parquet"]),
        ("note.md", ["note.md"]),
    ],
)
def test_patterns_match_as_documented(folder: Storage, pattern: str, expected: list[str]) -> None:
    write_files(folder, "a2.parquet", "a1.parquet", "in/b.parquet", "in/deeper/c.parquet", "in/d.csv", "note.md")
    write_files(folder, "_hidden.parquet", ".temporary/e.parquet", "in/_odd/f.parquet")
    assert list_paths(folder, pattern) == expected


def test_output_folders_are_no_input(folder: Storage) -> None:
    write_files(folder, "in/a.parquet", "in/out/part-0.parquet", "in/out/_limbert.json", "in/outer/b.parquet")
    assert list_paths(folder, "in") == list_paths(folder, "in/") == ["in/a.parquet", "in/outer/b.parquet"]
    assert list_paths(folder, "in/out") == list_paths(folder, "in/o*/part*") == ["in/out/part-0.parquet"]


@pytest.mark.parametrize("pattern", ["in", "in/**/*.parquet"])
def test_links_are_followed_but_not_in_circles(tmp_path: Path, pattern: str) -> None:
    folder = Storage.from_uri(str(tmp_path))
    write_files(folder, "in/a.parquet", "in/day=1/b.parquet", "elsewhere/c.parquet")
    (tmp_path / "in" / "day=1" / "back").symlink_to("..")
    (tmp_path / "in" / "day=2").symlink_to("../elsewhere")
    (tmp_path / "in" / "gone.parquet").symlink_to("nowhere")
    assert list_paths(folder, pattern) == ["in/a.parquet", "in/day=1/b.parquet", "in/day=2/c.parquet"]


def test_a_missing_folder_holds_no_files(folder: Storage) -> None:
    missing = Storage(folder.filesystem, folder.path + "/missing")
    assert missing.file_names() == set()
    for path in (missing.path, missing.path + "*"):
        with pytest.raises(DataError, match="missing"):
            Storage(folder.filesystem, path).list_files()
    with pytest.raises(StorageError, match="missing/one"):
        missing.read("one")


def test_a_written_file_is_read_and_replaced(folder: Storage) -> None:
    folder.write("one", b"first")
    folder.write("one", b"second")
    assert folder.file_names() == {"one"}
    assert folder.read("one") == b"second"


def test_a_failed_upload_leaves_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch)
    objects: dict[str, bytes] = {}
    with object_store(objects, refuse_over=10_000_000) as options:
        storage = Storage.from_uri(f"s3://bucket/out{options}")
        storage.write("small", b"content")
        with pytest.raises(StorageError, match="bucket/out/large"):
            storage.write("large", bytes(30_000_000))  # in parts, of which only the first arrives
        assert storage.file_names() == {"small"}
    assert [*objects] == ["bucket/out/small"]


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="file/one"):
        Storage.from_uri(str(tmp_path / "file")).write("one", b"content")
    with pytest.raises(TypeError):
        Storage.from_uri(str(tmp_path / "out")).write("one", "text instead of bytes")
    assert not [*(tmp_path / "out").iterdir()]


def test_only_stale_temporary_files_are_removed(tmp_path: Path) -> None:
    storage, hour = Storage.from_uri(str(tmp_path)), 3600
    ages = {".part-0.new-1-ab": 2 * hour, ".part-1.new-2-cd": hour / 2, "part-2": 2 * hour, ".part-3.new-4-ef": 0}
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    storage.remove_stale_files()
    assert storage.file_names() == {*ages} - {".part-0.new-1-ab"}


def test_file_uris_may_have_question_marks(tmp_path: Path) -> None:
    write_files(Storage.from_uri(str(tmp_path)), "a1.parquet")
    (found,) = Storage.from_uri(f"file://{tmp_path}/a?.parquet").list_files()
    assert found.path == f"{tmp_path}/a1.parquet"


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match="carrier-pigeon://loft"):
        Storage.from_uri("carrier-pigeon://loft")


def shard(path: Path, max_shard_rows: int = 7, text_column: str | None = None, **changes: Any) -> ShardedInput:
    options = {"keep_columns": None, "prediction_columns": ("label", "score"), "max_shard_rows": max_shard_rows}
    return shard_input(str(path), DataConfig(text_column=text_column), **options | changes)


def read_rows(inputs: ShardedInput, order: list[int] | None = None) -> list[tuple[Any, ...]]:
    """The text and the kept columns of all rows, read in some order of the shards."""
    reader, rows = ShardReader(inputs, skip_bad_rows=False), {}
    for index in order or range(len(inputs.shards)):
        kept, indices, examples = reader.read(inputs.shards[index])
        assert indices == [*range(inputs.shards[index].rows)]
        columns = [kept.column(name).to_pylist() for name in inputs.kept_columns]
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
            raw = read_raw_examples(one, columns, skip_bad_rows=False)
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
    texts = (
        [*zip(examples.texts, examples.pairs, strict=True)] if examples.pairs else [(text,) for text in examples.texts]
    )
    assert dict(zip(indices, texts, strict=True)) == {
        index: row for index, row in enumerate(plain) if isinstance(row, tuple)
    }
    one_row = shard_input(str(path), config, max_shard_rows=1, **options)
    reader = ShardReader(one_row, skip_bad_rows=False)
    for part, row in zip(one_row.shards, plain, strict=True):
        if isinstance(row, str):
            with pytest.raises(DataError) as raised:
                reader.read(part)
            assert str(raised.value) == row
    return plain


def test_json_rows_are_refused_as_by_the_plain_engine(tmp_path: Path) -> None:
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
        (pyarrow.array([True, False]), False),
        (pyarrow.array([{"x": 1}, None]), False),
        (pyarrow.array([b"one", b"two"]), False),
        (pyarrow.nulls(2), False),
        (pyarrow.array(["one", None], pyarrow.large_string()), True),
        (pyarrow.array(["one", "two"], pyarrow.string_view()), True),
        (pyarrow.array(["one", "one"]).dictionary_encode(), True),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)
def test_parquet_types_are_read_as_by_the_plain_engine(tmp_path: Path, column: pyarrow.Array, is_text: bool) -> None:
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
    write_json(
        tmp_path / "in" / "a.jsonl", [{"text": f"row {row}"} | ({"id": row} if row > 149 else {}) for row in range(200)]
    )
    write_json(tmp_path / "in" / "b.jsonl", [{"text": "row 200"}, {"text": "row 201", "note": "last"}])
    write_json(tmp_path / "in" / "c.jsonl", [{"note": "before", "text": "row 202"}])
    inputs = shard(tmp_path / "in", 160)
    assert inputs.kept_columns == ("text", "id", "note")
    ids = [str(row) if 149 < row < 200 else None for row in range(203)]
    notes = {201: "last", 202: "before"}
    assert read_rows(inputs) == [(f"row {n}", f"row {n}", ids[n], notes.get(n)) for n in range(203)]
    assert shard(tmp_path / "in", keep_columns=("id",)).kept_columns == ("id",)
    with pytest.raises(ConfigError, match="'note'"):
        shard(tmp_path / "in", prediction_columns=("note",))
    write_json(tmp_path / "in" / "d.jsonl", [{"id": 203}])
    with pytest.raises(DataError, match=r"d\.jsonl: column 'text'"):
        shard(tmp_path / "in")


def test_other_columns_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", TEXTS, files=2, row_group=10)
    later = tmp_path / "in" / "texts-2.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "text": ["one more"], "note": ["only here"]}), later)
    with pytest.raises(DataError, match=r"texts-2\.parquet: column 'note'.* --keep"):
        shard(tmp_path / "in")
    assert shard(tmp_path / "in", keep_columns=("id", "text")).rows == 102
    pyarrow.parquet.write_table(pyarrow.table({"id": ["one"], "text": ["of another type"]}), later)
    with pytest.raises(DataError, match=r"texts-2\.parquet: column 'id' is string"):
        shard(tmp_path / "in")


def test_columns_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", TEXTS, files=2, row_group=10)
    with pytest.raises(ConfigError, match="--keep 'name'"):
        shard(tmp_path / "in", keep_columns=("name",))
    with pytest.raises(ConfigError, match="'id'"):
        shard(tmp_path / "in", prediction_columns=("id",))
    assert shard(tmp_path / "in", prediction_columns=("id",), keep_columns=("text",)).kept_columns == ("text",)


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
