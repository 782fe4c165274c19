"""However the input is cut and read, each row comes once and in order."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tests.factories.batch_jobs import make_texts, write_parquet

from limbert.core.config import DataConfig
from limbert.data.readers import Table, open_table, read_raw_examples
from limbert.data.tasks import Columns
from limbert.errors import ConfigError, DataError
from limbert.inference.batch.reader import ShardReader
from limbert.inference.batch.request import BatchPredictionConfig, job_settings, open_output
from limbert.inference.batch.shards import ShardedInput, shard_input
from limbert.inference.batch.store import StoragePath
from limbert.inference.policy import Policy

TEXTS = make_texts(101)


def look(address: Path, shard_rows: int = 7, **changes: object) -> ShardedInput:
    options = {"keep_columns": None, "added_columns": ("label", "score"), "max_shard_rows": shard_rows} | changes
    return shard_input(str(address), DataConfig(), **options)  # type: ignore[arg-type]


def read(found: ShardedInput, order: list[int]) -> dict[int, list[tuple[object, ...]]]:
    reader = ShardReader(found.storage, found.columns, found.kept_columns)
    rows = {}
    for place in order:
        part = reader.read(found.shards[place])
        texts = [row.cells[0] for row in part.texts.rows()]
        rows[place] = [
            *zip(texts, *(part.kept_columns.column(name).to_pylist() for name in found.kept_columns), strict=True)
        ]
    return rows


@pytest.mark.parametrize(("files", "row_group", "shard_rows"), [(1, 1000, 7), (3, 5, 7), (3, 7, 50), (2, 10, 10)])
def test_every_row_is_read_once_and_in_order(tmp_path: Path, files: int, row_group: int, shard_rows: int) -> None:
    write_parquet(tmp_path / "in", TEXTS, files=files, row_group=row_group)
    found = look(tmp_path / "in", shard_rows)
    assert found.rows == 101
    assert [shard.name for shard in found.shards] == sorted(shard.name for shard in found.shards)
    forward, backward = [*range(len(found.shards))], [*range(len(found.shards))][::-1]
    everything = [(text, number, text) for number, text in enumerate(TEXTS)]
    for order in (forward, backward, forward[::2] + forward[1::2]):
        rows = read(found, order)
        assert [row for place in forward for row in rows[place]] == everything


def test_another_cut_is_another_request(tmp_path: Path) -> None:
    """Of the same number of shards too: which rows are done is told by the shards' names alone."""
    write_parquet(tmp_path / "in", TEXTS, files=1, row_group=1000)
    cuts = [look(tmp_path / "in", rows) for rows in (50, 40, 45)]
    assert {len(found.shards) for found in cuts} == {3}
    request = BatchPredictionConfig(Policy(subnet="1x1"))
    asked = [job_settings(request, found, checkpoint_fingerprint="a", max_length=8) for found in cuts]
    assert job_settings(request, look(tmp_path / "in", 50), checkpoint_fingerprint="a", max_length=8) == asked[0]
    store = StoragePath.from_uri(str(tmp_path / "out"))
    open_output(store, asked[0])
    patient = job_settings(
        BatchPredictionConfig(Policy(subnet="1x1"), skip_bad_rows=True),
        cuts[0],
        checkpoint_fingerprint="a",
        max_length=8,
    )
    open_output(store, patient)  # finished shards had no bad rows
    with pytest.raises(ConfigError, match="skip_bad_rows true -> false"):
        open_output(store, asked[0])
    for other in asked[1:]:
        with pytest.raises(ConfigError, match=r"other settings .*shard_rows 50 -> 4"):
            open_output(store, other)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_text_files_give_the_same(tmp_path: Path, kind: str) -> None:
    lines = [json.dumps({"text": text, "id": number}) for number, text in enumerate(TEXTS)]
    if kind != "jsonl":
        between = "," if kind == "csv" else "\t"
        lines = [f"text{between}id", *(f"{text}{between}{number}" for number, text in enumerate(TEXTS))]
    (tmp_path / f"in.{kind}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = look(tmp_path / f"in.{kind}")
    rows = read(found, [*range(len(found.shards))])
    assert [row for place in rows for row in rows[place]] == [
        (text, text, str(number)) for number, text in enumerate(TEXTS)
    ]


def judged(table: Table, columns: Columns) -> list[object]:
    """Of each row its text and pair, or why it is refused."""
    found: list[object] = []
    for row in table.rows():
        one = Table(table.name, table.columns, lambda row=row: iter([row]))  # type: ignore[misc]
        try:
            raw = read_raw_examples(one, columns, skip_bad_rows=False)
            found.append((raw.texts, raw.pairs))
        except DataError as error:
            found.append(str(error))
    return found


def judged_by_both(path: Path, columns: Columns, *, rows: int) -> list[object]:
    config = DataConfig(text_column=columns.text, pair_column=columns.pair)
    found = shard_input(str(path), config, keep_columns=None, added_columns=(), max_shard_rows=100)
    (shard,) = found.shards
    assert shard.rows == rows
    part = ShardReader(found.storage, found.columns, found.kept_columns).read(shard)
    plain = judged(open_table(path), columns)
    assert judged(part.texts, columns) == plain
    assert part.kept_columns.num_rows == rows
    return plain


def test_json_values_that_are_no_text_are_refused_as_by_the_plain_engine(tmp_path: Path) -> None:
    values = ["one two", ["a", "b"], {"x": 1}, 5, 0.5, False, None, " ", ["a"]]
    pairs = ["three", "four", "five", "six", "seven", "eight", 9, [10], {"y": 2}]
    lines = [{"a": text, "b": pair, "id": [number]} for number, (text, pair) in enumerate(zip(values, pairs))]  # noqa: B905
    lines += [{"a": "one", "b": True}, {"b": "one"}, {"a": "one"}]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[]\n", encoding="utf-8")
    plain = judged_by_both(path, Columns("a", "b", None), rows=len(lines) + 1)
    assert plain[1] == f"{path}:2: list in column 'a', expected text"
    assert plain[7] == f"{path}:8: no text in column 'a', expected some"
    assert plain[9] == f"{path}:10: bool in column 'b', expected text"
    found = shard_input(
        str(path), DataConfig(text_column="a"), keep_columns=("id", "a"), added_columns=(), max_shard_rows=100
    )
    kept = ShardReader(found.storage, found.columns, found.kept_columns).read(found.shards[0]).kept_columns.to_pylist()
    assert kept[1] == {"id": "[1]", "a": '["a", "b"]'}, "what the output repeats is JSON as before"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pyarrow.array([["a"], ["b", "c"]]), "list in column 'a', expected text"),
        (pyarrow.array([1, 2]), "int in column 'a', expected text"),
        (pyarrow.array([True, False]), "bool in column 'a', expected text"),
        (pyarrow.array([{"x": 1}, None]), "dict in column 'a', expected text"),
        (pyarrow.array([b"one", b"two"]), "bytes in column 'a', expected text"),
        (pyarrow.nulls(2), "no text in column 'a', expected some"),
        (pyarrow.array(["one", None], pyarrow.large_string()), None),
        (pyarrow.array(["one", "two"], pyarrow.string_view()), None),
        (pyarrow.array(["one", "one"]).dictionary_encode(), None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)
def test_parquet_columns_are_taken_or_refused_as_by_the_plain_engine(
    tmp_path: Path, column: pyarrow.Array, expected: str | None
) -> None:
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": column, "id": [0, 1]}), path)
    first, _ = judged_by_both(path, Columns("a", None, None), rows=2)
    assert first == (f"{path}:1: {expected}" if expected else (["one"], None))


def test_ids_of_classes_are_read_as_their_names(tmp_path: Path) -> None:
    """As the plain engine does where ``datasets`` wrote a file: an aspect may be the second text."""
    classes = {"info": {"features": {"b": {"_type": "ClassLabel", "names": ["price", "taste"]}}}}
    table = pyarrow.table({"a": ["one", "two", "three"], "b": [1, 0, 7]})
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(classes)}), path)
    plain = judged_by_both(path, Columns("a", "b", None), rows=3)
    assert plain[:2] == [(["one"], ["taste"]), (["two"], ["price"])]


def json_file(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_keys_that_occur_late_in_json_lines_are_columns(tmp_path: Path) -> None:
    json_file(
        tmp_path / "in" / "a.jsonl", [{"text": f"row {row}"} | ({"id": row} if row > 149 else {}) for row in range(200)]
    )
    json_file(tmp_path / "in" / "b.jsonl", [{"text": "row 200"}, {"text": "row 201", "note": "last"}])
    json_file(tmp_path / "in" / "c.jsonl", [{"note": "before", "text": "row 202"}])
    found = look(tmp_path / "in", shard_rows=160)
    assert found.kept_columns == ("text", "id", "note")
    rows = [row for rows in read(found, [*range(len(found.shards))]).values() for row in rows]
    ids = [str(row) if 149 < row < 200 else None for row in range(203)]
    assert rows == [(f"row {n}", f"row {n}", ids[n], {201: "last", 202: "before"}.get(n)) for n in range(203)]
    assert look(tmp_path / "in", keep_columns=("id",)).kept_columns == ("id",), "it may be asked for by name"
    with pytest.raises(ConfigError, match="input column 'note' has the name of an answer's"):
        look(tmp_path / "in", added_columns=("note",))
    json_file(tmp_path / "in" / "d.jsonl", [{"id": 203}])
    with pytest.raises(DataError, match=r"d\.jsonl: no column 'text'; expected the columns of .*a\.jsonl"):
        look(tmp_path / "in")


def test_a_column_that_only_a_later_file_has_is_not_dropped(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", TEXTS, files=2, row_group=10)
    table = pyarrow.table({"id": [1], "text": ["one more"], "note": ["only here"]})
    pyarrow.parquet.write_table(table, tmp_path / "in" / "texts-2.parquet")
    with pytest.raises(DataError, match=r"texts-2\.parquet: column 'note' is not in .*texts-0\.parquet; choose"):
        look(tmp_path / "in")
    assert look(tmp_path / "in", keep_columns=("id", "text")).rows == 102


def test_large_rows_make_small_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", [text + 2**21 * "x" for text in TEXTS[:40]], files=1, row_group=10)
    footer = pyarrow.parquet.read_metadata(tmp_path / "in" / "texts-0.parquet")
    assert sum(footer.row_group(place).total_byte_size for place in range(4)) > 80 * 2**20
    assert max(shard.rows for shard in look(tmp_path / "in", 1000).shards) <= 32


def test_columns_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", TEXTS, files=2, row_group=10)
    with pytest.raises(ConfigError, match=r"--keep 'name': .* it has id, text"):
        look(tmp_path / "in", keep_columns=("name",))
    with pytest.raises(ConfigError, match="input column 'id' has the name of an answer's"):
        look(tmp_path / "in", added_columns=("id",))
    assert look(tmp_path / "in", added_columns=("id",), keep_columns=("text",)).kept_columns == ("text",)
    table = pyarrow.table({"id": ["one"], "text": ["of another type"]})
    pyarrow.parquet.write_table(table, tmp_path / "in" / "texts-2.parquet")
    with pytest.raises(DataError, match=r"texts-2\.parquet: other column types; expected the columns of .*texts-0"):
        look(tmp_path / "in")


def test_a_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", TEXTS, files=1, row_group=10)
    found = look(tmp_path / "in")
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "text": ["alone"]}), tmp_path / "in" / "texts-0.parquet")
    with pytest.raises(DataError, match="has changed"):
        read(found, [3])
