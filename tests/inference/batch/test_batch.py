"""Answers from a Ray cluster are the plain engine's, each row once, whoever was killed in between."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.dataset
import pytest
import torch
from tests.factories.batch_jobs import POLICY, TASK, make_texts, save_model, write_parquet
from tests.factories.object_store import object_store, use_keys
from tests.factories.runs import command, environment, needs_encoder

from limbert.core.config import DataConfig
from limbert.data.readers import Examples
from limbert.data.tasks import custom_task
from limbert.data.tokenize import tokenize_texts
from limbert.errors import ConfigError, DataError
from limbert.inference.batch import batch
from limbert.inference.batch.batch import BatchPredictionResult, predict_files
from limbert.inference.batch.cluster import WorkerPool
from limbert.inference.batch.request import BatchPredictionConfig
from limbert.inference.batch.shards import Shard, shard_input
from limbert.inference.batch.worker import ShardResult, ShardWorker, WorkerConfig, prediction_columns
from limbert.inference.load import LoadedCheckpoint, load_checkpoint
from limbert.inference.policy import Policy
from limbert.inference.predict import predict

pytest.importorskip("ray")
pytestmark = needs_encoder
TEXTS = make_texts(400)
SHARD = 30


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the workers have: with two, the plain engine's last bits are others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model, and texts in three files."""
    folder = tmp_path_factory.mktemp("batch")
    save_model(folder / "model")
    write_parquet(folder / "in", TEXTS, files=3, row_group=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBERT_CACHE", str(folder / "cache"))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker in this process instead of two in others: they take long to start."""

    def stream(
        shards: list[Shard],
        fetch_checkpoint: Any,
        config: WorkerConfig,
        *,
        workers: int,
        count_attempt: Any = lambda name: 1,
    ) -> Iterator[ShardResult]:
        worker = ShardWorker(fetch_checkpoint, config, count_attempt=count_attempt)
        yield from map(worker.predict, shards)

    monkeypatch.setattr(batch, "worker_pool", lambda *_, **__: nullcontext(WorkerPool(1, 1)))
    monkeypatch.setattr(batch, "import_ray", lambda: SimpleNamespace(put=lambda value: lambda: value))
    monkeypatch.setattr(batch, "_CheckpointReference", lambda reference: reference)
    monkeypatch.setattr(batch, "_predict_shards", stream)


@pytest.fixture(scope="module")
def opened(folder: Path) -> LoadedCheckpoint:
    return load_checkpoint(folder / "model")


def answer(
    folder: Path, opened: LoadedCheckpoint, output: str, *, texts: str = "in", **changes: Any
) -> BatchPredictionResult:
    found = shard_input(
        str(folder / texts),
        DataConfig(),
        keep_columns=None,
        added_columns=prediction_columns(TASK),
        max_shard_rows=changes.pop("rows", SHARD),
    )
    request = BatchPredictionConfig(**{"policy": POLICY} | changes)
    where = str(folder / output)
    return predict_files(str(folder / "model"), opened, found, where, config=request, workers=2)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pyarrow.dataset.dataset(folder).to_table().to_pylist()


def plain(opened: LoadedCheckpoint, texts: list[str]) -> list[tuple[Any, ...]]:
    tokens = tokenize_texts(
        Examples(tuple(texts), None, None), opened.tokenizer, max_length=opened.max_length, use_cache=False
    )
    answers = predict(opened.model, tokens, task=TASK, policy=POLICY)
    return [(one.label, one.score, one.layers_run, one.flops) for one in answers]


@pytest.mark.usefixtures("without_ray")
def test_answers_are_the_plain_engines(folder: Path, opened: LoadedCheckpoint) -> None:
    answered = answer(folder, opened, "answered")
    assert (answered.rows, answered.shards, answered.resumed) == (400, len(answered.shard_results), 0)
    expect_plain_answers(folder / "answered", opened, [done.rows for done in answered.shard_results])


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("kind", ["regression", "multi-label"])
def test_other_kinds_of_tasks(folder: Path, kind: Any) -> None:
    task = custom_task(kind, ("a", "b", "c") if kind == "multi-label" else ())
    opened = load_checkpoint(save_model(folder / kind, task))
    found = shard_input(
        str(folder / "in"),
        DataConfig(),
        keep_columns=("id",),
        added_columns=prediction_columns(task),
        max_shard_rows=400,
    )
    request = BatchPredictionConfig(Policy(subnet="0.5x0.5"))
    predict_files(str(folder / kind), opened, found, str(folder / f"{kind}-out"), config=request)
    answers: list[Any] = []
    for part in (TEXTS[:134], TEXTS[134:267], TEXTS[267:]):
        tokens = opened.tokenize(Examples(tuple(part), None, None), cache=False)
        answers += [one.to_dict() for one in predict(opened.model, tokens, task=task, policy=request.policy)]
    name = "labels" if kind == "multi-label" else "score"
    rows = rows_of(folder / f"{kind}-out")
    assert [*rows[0]] == ["id", name, "layers", "flops"]
    assert [row[name] for row in rows] == [answer[name] for answer in answers]
    assert rows[0][name] != rows[1][name]


def test_answers_at_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="classification, regression, multi-label; this model is for question-answ"):
        prediction_columns(custom_task("question-answering", ()))


@pytest.mark.usefixtures("without_ray")
def test_a_shard_that_kills_its_workers_ends_the_run(folder: Path, opened: LoadedCheckpoint, monkeypatch: Any) -> None:
    stream = batch._predict_shards
    monkeypatch.setattr(
        batch, "_predict_shards", lambda *a, **k: stream(*a, **k, count_attempt=lambda name: 6 * (name > "part-00003"))
    )
    with pytest.raises(DataError, match=r"texts-0\.parquet: the worker died 5 times on rows 91 to 120 "):
        answer(folder, opened, "poisoned")
    assert len([*(folder / "poisoned").glob("part-*")]) == 3


@pytest.mark.slow
def test_with_driver_and_worker_killed_each_row_is_answered_once(folder: Path, opened: LoadedCheckpoint) -> None:
    options = ["--policy", "width+depth", "--exit-threshold", "0.9", "--engine", "ray", "--workers", "2"]
    command_line = command(
        "predict", "model", *options, "--input", "in/*.parquet", "--output", "killed", "--shard-rows", "4"
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command_line, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    first = start()
    wait_for_shards(folder / "killed", 10, first)
    first.kill()
    first.communicate()
    there = {path: path.stat().st_mtime_ns for path in (folder / "killed").glob("part-*")}
    assert 10 <= len(there) < 102
    second = start()
    wait_for_shards(folder / "killed", len(there) + 5, second)
    victims = [one for one in psutil.Process(second.pid).children(recursive=True) if is_worker(one)]
    victims[0].kill()
    _, errors = second.communicate(timeout=1800)
    assert second.returncode == 0, errors
    assert "400 answers in 102 shards in killed; " in errors
    assert {path: path.stat().st_mtime_ns for path in there} == there
    expect_plain_answers(folder / "killed", opened, ([4] * 33 + [2] + [4] * 33 + [1] + [4] * 33 + [1]))


def is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
        return "MapWorker" in "".join(process.cmdline())
    return False


def wait_for_shards(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len([*folder.glob("part-*")]) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def expect_plain_answers(output: Path, opened: LoadedCheckpoint, shards: list[int]) -> None:
    """Bit for bit, where the plain engine is given the shards' texts; widths of batches change the last bits."""
    rows = rows_of(output)
    assert [(row["id"], row["text"]) for row in rows] == [*enumerate(TEXTS)]
    expected: list[tuple[Any, ...]] = []
    for size in shards:
        expected += plain(opened, TEXTS[len(expected) : len(expected) + size])
    assert [(row["label"], row["score"], row["layers"], row["flops"]) for row in rows] == expected
    assert len({row["label"] for row in rows}) > 1
    assert len({row["layers"] for row in rows}) > 1


@pytest.mark.usefixtures("without_ray")
def test_finished_shards_stay_and_other_settings_are_refused(folder: Path, opened: LoadedCheckpoint) -> None:
    answer(folder, opened, "resumed", rows=100)
    shards = sorted((folder / "resumed").glob("part-*"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards}
    shards[1].unlink()
    half = folder / "resumed" / ".part-00001.parquet.new-1-ab"
    half.write_bytes(b"the half of a shard")
    os.utime(half, (1, 1))
    answered = answer(folder, opened, "resumed", rows=100)
    assert [done.name for done in answered.shard_results] == [shards[1].name]
    assert answered.resumed == len(shards) - 1
    assert {path: path.read_bytes() for path in shards} == {path: content for path, (content, _) in before.items()}
    assert [path for path in shards if path.stat().st_mtime_ns != before[path][1]] == [shards[1]]
    assert {path.name for path in (folder / "resumed").iterdir()} == {"_limbert.json", *(path.name for path in shards)}
    with pytest.raises(ConfigError, match=r"begun with other settings \(policy .*static:1x0.5"):
        answer(folder, opened, "resumed", rows=100, policy=Policy(subnet="1x0.5"))
    with pytest.raises(ConfigError, match=r"shards 6 -> 9"):
        answer(folder, opened, "resumed", rows=50)
    with pytest.raises(ConfigError, match="is not empty"):
        answer(folder, opened, "in")
    os.utime(folder / "in" / "texts-1.parquet", (1, 1))
    with pytest.raises(ConfigError, match=r"\(input .*texts-1\.parquet\)"):
        answer(folder, opened, "resumed", rows=100)


@pytest.mark.usefixtures("without_ray")
def test_a_driver_that_was_overtaken_answers_nothing(folder: Path, opened: LoadedCheckpoint, monkeypatch: Any) -> None:
    """Another took the same object store at the same time, and its settings stayed."""
    record = folder / "overtaken" / "_limbert.json"

    def overtaken(*_: object, **__: object) -> nullcontext[WorkerPool]:
        record.write_text(record.read_text().replace('"fp32"', '"bf16"'))
        return nullcontext(WorkerPool(1, 1))

    monkeypatch.setattr(batch, "worker_pool", overtaken)
    with pytest.raises(ConfigError, match=r'other settings \(precision "bf16" -> "fp32"\)'):
        answer(folder, opened, "overtaken")
    assert [*record.parent.iterdir()] == [record]


@pytest.mark.usefixtures("without_ray")
def test_from_an_object_store_to_an_object_store(
    folder: Path, opened: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(folder, opened, "on-disk")
    use_keys(monkeypatch)
    objects = {f"bucket/in/{path.name}": path.read_bytes() for path in (folder / "in").iterdir()}
    with object_store(objects) as options:
        added = prediction_columns(TASK)
        found = shard_input(
            f"s3://bucket/in/*.parquet{options}",
            DataConfig(),
            keep_columns=None,
            added_columns=added,
            max_shard_rows=SHARD,
        )
        place = f"s3://bucket/answers{options}"
        answered = predict_files(str(folder / "model"), opened, found, place, config=BatchPredictionConfig(POLICY))
        assert answered.rows == 400
        again = predict_files(str(folder / "model"), opened, found, place, config=BatchPredictionConfig(POLICY))
        assert (again.resumed, again.shard_results) == (answered.shards, ())
    for path in (folder / "on-disk").glob("part-*"):
        assert objects[f"bucket/answers/{path.name}"] == path.read_bytes()


@pytest.mark.usefixtures("without_ray")
def test_rows_without_a_text_stop_or_stay_empty(folder: Path, opened: LoadedCheckpoint) -> None:
    texts: list[str | None] = [*TEXTS[:20]]
    texts[3] = None
    texts[10:20] = [" "] * 10  # a whole shard
    write_parquet(folder / "gaps", texts, files=1, row_group=7)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"texts-0\.parquet:(4|11): no text in column 'text', expected some"):
        answer(folder, opened, "stopped", texts="gaps", rows=10)
    answered = answer(folder, opened, "skipped", texts="gaps", rows=10, skip_bad_rows=True)
    assert answered.bad_rows == 11
    rows = rows_of(folder / "skipped")
    assert [row["text"] for row in rows] == texts
    assert [row["id"] for row in rows if row["label"] is None] == [3, *range(10, 20)]
    assert {row["layers"] for row in rows if row["label"] is None} == {None}
    assert [row["label"] for row in rows if row["label"]] == [
        label for label, *_ in plain(opened, [text for text in texts if text and text.strip()])
    ]
