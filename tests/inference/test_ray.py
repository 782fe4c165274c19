"""Batch prediction on Ray: predictions equal the plain engine's, each row once, whichever process was killed."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow.dataset
import pytest
import torch
from tests.factories.batch_jobs import POLICY, make_texts, save_model, write_parquet
from tests.factories.object_store import object_store, use_keys
from tests.factories.runs import command, environment, needs_encoder

from limbert.core.config import DataConfig
from limbert.data.readers import Examples
from limbert.data.tasks import custom_task
from limbert.errors import ConfigError, DataError, StorageError
from limbert.inference import ray as module
from limbert.inference.load import LoadedCheckpoint, load_checkpoint
from limbert.inference.policy import Policy
from limbert.inference.predict import predict
from limbert.inference.ray import (
    BatchPredictionConfig,
    BatchPredictionResult,
    ShardResult,
    ShardWorker,
    predict_files,
    prediction_columns,
    ray_session,
    unpack_checkpoint,
)
from limbert.inference.shards import Shard, shard_input
from limbert.inference.storage import Storage, check_settings, open_output

pytest.importorskip("ray")
pytestmark = needs_encoder
TEXTS = make_texts(400)
SHARD_ROWS = 30


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As workers have: with two threads, the last bits of the plain engine's scores differ."""
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


@pytest.fixture(scope="module")
def opened(folder: Path) -> LoadedCheckpoint:
    return load_checkpoint(folder / "model")


def run_one_worker(
    shards: list[Shard],
    files: Mapping[str, np.ndarray],
    job: Mapping[str, Any],
    *,
    workers: int,
    count_attempt: Callable[[str], int] = lambda name: 1,
) -> Iterator[ShardResult]:
    worker = ShardWorker(lambda: files, count_attempt, **job)
    for shard in shards:
        row = worker({name: np.array([value]) for name, value in vars(shard).items()})
        yield ShardResult(**{name: value for name, (value,) in row.items()})


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker in this process instead of two in others, which take seconds to start."""
    session = nullcontext(SimpleNamespace(cluster_resources=lambda: {"CPU": 1}))
    monkeypatch.setattr(module, "ray_session", lambda **_: session)
    monkeypatch.setattr(module, "_run_workers", run_one_worker)


def predict_folder(
    folder: Path,
    opened: LoadedCheckpoint,
    output: str,
    *,
    input: str = "in",
    model: str = "model",
    shard_rows: int = SHARD_ROWS,
    keep_columns: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **changes: Any,
) -> BatchPredictionResult:
    assert opened.task is not None
    inputs = shard_input(
        input if "://" in input else str(folder / input),
        DataConfig(),
        keep_columns=keep_columns,
        prediction_columns=prediction_columns(opened.task),
        max_shard_rows=shard_rows,
    )
    config = BatchPredictionConfig(**{"policy": POLICY} | changes)
    output = output if "://" in output else str(folder / output)
    options: dict[str, Any] = {"config": config, "workers": 2, "threads": 1, "progress": progress}
    return predict_files(str(folder / model), opened, inputs, output, **options)


def read_output(folder: Path) -> list[dict[str, Any]]:
    return pyarrow.dataset.dataset(folder).to_table().to_pylist()


def predict_plainly(
    opened: LoadedCheckpoint, texts: Sequence[str], shard_rows: Sequence[int], policy: Policy = POLICY
) -> list[dict[str, Any]]:
    """By the plain engine, shard by shard: the widths of batches change the last bits."""
    assert opened.task is not None
    rows: list[dict[str, Any]] = []
    for count in shard_rows:
        tokens = opened.tokenize(Examples(tuple(texts[len(rows) : len(rows) + count]), None, None), cache=False)
        predictions = predict(opened.model, tokens, task=opened.task, policy=policy)
        rows += [prediction.to_dict() | prediction.cost_to_dict() for prediction in predictions]
    return rows


def check_output(output: Path, opened: LoadedCheckpoint, shard_rows: Sequence[int]) -> None:
    rows = read_output(output)
    predictions = enumerate(predict_plainly(opened, TEXTS, shard_rows))
    assert rows == [{"id": index, "text": TEXTS[index]} | prediction for index, prediction in predictions]
    assert len({row["label"] for row in rows}) > 1
    assert len({row["layers"] for row in rows}) > 1


@pytest.mark.usefixtures("without_ray")
def test_predictions_equal_the_plain_engines(folder: Path, opened: LoadedCheckpoint) -> None:
    result = predict_folder(folder, opened, "predicted")
    assert (result.rows, result.shards, result.resumed) == (400, len(result.shard_results), 0)
    check_output(folder / "predicted", opened, [shard.rows for shard in result.shard_results])


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("task_type", ["regression", "multi-label"])
def test_other_task_types_predict_the_same(folder: Path, task_type: Any) -> None:
    task = custom_task(task_type, ("a", "b", "c") if task_type == "multi-label" else ())
    opened = load_checkpoint(save_model(folder / task_type, task))
    policy = Policy(subnet="0.5x0.5")
    options: dict[str, Any] = {"model": task_type, "shard_rows": 400, "keep_columns": ("id",), "policy": policy}
    predict_folder(folder, opened, f"{task_type}-out", **options)
    rows = read_output(folder / f"{task_type}-out")
    predictions = predict_plainly(opened, TEXTS, [134, 133, 133], policy)
    assert rows == [{"id": index} | prediction for index, prediction in enumerate(predictions)]
    assert [*rows[0]] == ["id", *prediction_columns(task)]


@pytest.mark.usefixtures("without_ray")
def test_other_runtimes_predict_the_same(folder: Path, opened: LoadedCheckpoint) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    policy = Policy(subnet="0.5x0.5")
    options: dict[str, Any] = {"policy": policy, "shard_rows": 400, "keep_columns": ("id",)}
    predict_folder(folder, opened, "onnx", runtime="onnxruntime", **options)
    rows = read_output(folder / "onnx")
    expected = predict_plainly(opened, TEXTS, [134, 133, 133], policy)
    for name in ("label", "layers", "flops"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in expected], abs=1e-4)
    with pytest.raises(ConfigError, match="runtime"):
        predict_folder(folder, opened, "onnx", **options)


def test_token_level_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="question-answering"):
        prediction_columns(custom_task("question-answering", ()))


@pytest.mark.usefixtures("without_ray")
def test_a_shard_that_kills_workers_is_named(
    folder: Path, opened: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: Any, **options: Any) -> Iterator[ShardResult]:
        return run_one_worker(*arguments, **options, count_attempt=lambda name: 6 * (name > "part-00003"))

    monkeypatch.setattr(module, "_run_workers", run)
    with pytest.raises(DataError, match=r"texts-0\.parquet: .* rows 91 to 120 "):
        predict_folder(folder, opened, "poisoned")
    assert len([*(folder / "poisoned").glob("part-*")]) == 3


def kill_a_worker(driver: int) -> None:
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            if "MapWorker" in "".join(process.cmdline()):
                process.kill()
                return
    pytest.fail("no worker runs")


def test_each_row_once_after_a_kill(folder: Path, opened: LoadedCheckpoint) -> None:
    """The first driver ends after some shards; a worker of the second, on the same Ray, is killed."""

    def stop(done: int, total: int) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if done >= 120 and not killed:
            killed.append(done)
            kill_a_worker(os.getpid())

    with ray_session(cpus=2):
        with pytest.raises(KeyboardInterrupt):
            predict_folder(folder, opened, "killed", shard_rows=4, progress=stop)
        finished = {path: path.stat().st_mtime_ns for path in (folder / "killed").glob("part-*")}
        assert 10 <= len(finished) < 102
        result = predict_folder(folder, opened, "killed", shard_rows=4, progress=kill)
    assert killed
    assert (result.rows, result.shards) == (400, 102)
    assert result.resumed >= len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    check_output(folder / "killed", opened, [4] * 33 + [2] + [4] * 33 + [1] + [4] * 33 + [1])


@pytest.mark.slow
def test_100000_rows_once_after_kills(folder: Path, opened: LoadedCheckpoint) -> None:
    """The command is killed in the first run, a worker in the second."""
    texts = TEXTS * 250
    write_parquet(folder / "many", texts, files=4, row_group=10_000)
    options = ["--policy", "width+depth", "--exit-threshold", "0.9", "--engine", "ray", "--workers", "2"]
    files = ["--input", "many", "--output", "many-out", "--shard-rows", "400"]
    line = command("predict", "model", *options, *files)

    def start_and_wait(shards: int) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            line, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while len([*(folder / "many-out").glob("part-*")]) < shards:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.05)
        return driver

    first = start_and_wait(40)
    first.kill()
    first.communicate()
    finished = {path: path.stat().st_mtime_ns for path in (folder / "many-out").glob("part-*")}
    second = start_and_wait(len(finished) + 40)
    kill_a_worker(second.pid)
    _, errors = second.communicate(timeout=1800)
    assert second.returncode == 0, errors
    assert "100000 predictions in 252 shards" in errors
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    rows = read_output(folder / "many-out")
    assert [(row["id"], row["text"]) for row in rows] == [*enumerate(texts)]
    predictions = predict_plainly(opened, texts, [400] * 62)
    assert [row["label"] for row in rows[: len(predictions)]] == [row["label"] for row in predictions]


@pytest.mark.usefixtures("without_ray")
def test_finished_shards_stay(folder: Path, opened: LoadedCheckpoint) -> None:
    predict_folder(folder, opened, "resumed", shard_rows=100)
    shards = sorted((folder / "resumed").glob("part-*"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards}
    shards[1].unlink()
    half = folder / "resumed" / ".part-00001.parquet.new-1-ab"
    half.write_bytes(b"the first half of a shard")
    os.utime(half, (1, 1))
    result = predict_folder(folder, opened, "resumed", shard_rows=100)
    assert [shard.name for shard in result.shard_results] == [shards[1].name]
    assert result.resumed == len(shards) - 1
    assert {path: path.read_bytes() for path in shards} == {path: content for path, (content, _) in before.items()}
    assert [path for path in shards if path.stat().st_mtime_ns != before[path][1]] == [shards[1]]
    assert {path.name for path in (folder / "resumed").iterdir()} == {"_limbert.json", *(path.name for path in shards)}


@pytest.mark.usefixtures("without_ray")
def test_other_settings_or_input_are_refused(folder: Path, opened: LoadedCheckpoint) -> None:
    predict_folder(folder, opened, "settled", shard_rows=100)
    for match, changes in {
        "policy .*static:1x0.5": {"policy": Policy(subnet="1x0.5")},
        "shards 6 -> 9": {"shard_rows": 50},
        "shard_rows 100 -> 90": {"shard_rows": 90},  # as many shards, split at other rows
    }.items():
        with pytest.raises(ConfigError, match=match):
            predict_folder(folder, opened, "settled", **{"shard_rows": 100} | changes)
    with pytest.raises(ConfigError, match="is not empty"):
        predict_folder(folder, opened, "in")
    status = (folder / "in" / "texts-1.parquet").stat()
    os.utime(folder / "in" / "texts-1.parquet", (1, 1))
    with pytest.raises(ConfigError, match=r"input .*texts-1\.parquet\)"):
        predict_folder(folder, opened, "settled", shard_rows=100)
    os.utime(folder / "in" / "texts-1.parquet", ns=(status.st_atime_ns, status.st_mtime_ns))


def test_bad_rows_may_be_skipped_later(tmp_path: Path) -> None:
    output = Storage.from_uri(str(tmp_path / "out"))
    strict, patient = ({"policy": "a", "skip_bad_rows": skip} for skip in (False, True))
    assert open_output(output, strict) == set()
    assert open_output(output, patient) == {"_limbert.json"}
    with pytest.raises(ConfigError, match="skip_bad_rows true -> false"):
        open_output(output, strict)
    (tmp_path / "out" / "_limbert.json").write_text("[]")
    with pytest.raises(ConfigError, match="choose another folder"):
        check_settings(output, strict)


@pytest.mark.usefixtures("without_ray")
def test_an_overtaken_driver_predicts_nothing(
    folder: Path, opened: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver started at the same time with other settings, and its settings stayed."""
    record, session = folder / "overtaken" / "_limbert.json", module.ray_session

    def start_session(**options: Any) -> Any:
        record.write_text(record.read_text().replace('"fp32"', '"bf16"'))
        return session(**options)

    monkeypatch.setattr(module, "ray_session", start_session)
    with pytest.raises(ConfigError, match='precision "bf16" -> "fp32"'):
        predict_folder(folder, opened, "overtaken")
    assert [*record.parent.iterdir()] == [record]


@pytest.mark.usefixtures("without_ray")
def test_object_store_output_equals_local_output(
    folder: Path, opened: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_folder(folder, opened, "on-disk")
    use_keys(monkeypatch)
    objects = {f"bucket/in/{path.name}": path.read_bytes() for path in (folder / "in").iterdir()}
    with object_store(objects) as options:
        uris = {"input": f"s3://bucket/in/*.parquet{options}", "output": f"s3://bucket/out{options}"}
        result = predict_folder(folder, opened, **uris)
        again = predict_folder(folder, opened, **uris)
    assert result.rows == 400
    assert (again.resumed, again.shard_results) == (result.shards, ())
    for path in (folder / "on-disk").glob("part-*"):
        assert objects[f"bucket/out/{path.name}"] == path.read_bytes()


@pytest.mark.usefixtures("without_ray")
def test_rows_without_text_stop_or_stay_empty(folder: Path, opened: LoadedCheckpoint) -> None:
    texts: list[str | None] = [*TEXTS[:20]]
    texts[3] = None
    texts[10:20] = [" "] * 10  # a whole shard
    write_parquet(folder / "gaps", texts, files=1, row_group=7)
    with pytest.raises(DataError, match=r"texts-0\.parquet:(4|11): "):
        predict_folder(folder, opened, "stopped", input="gaps", shard_rows=10)
    result = predict_folder(folder, opened, "stopped", input="gaps", shard_rows=10, skip_bad_rows=True)
    assert (result.rows, result.bad_rows) == (20, 11)
    rows = read_output(folder / "stopped")
    assert [row["text"] for row in rows] == texts
    assert [row["id"] for row in rows if row["label"] is None] == [3, *range(10, 20)]
    assert {row["layers"] for row in rows if row["label"] is None} == {None}
    usable = [text for text in texts if text and text.strip()]
    expected = [row["label"] for row in predict_plainly(opened, usable, [len(usable)])]
    assert [row["label"] for row in rows if row["label"]] == expected


FILES = {"config.json": b"{}", "model.safetensors": bytes(range(1, 251)) * 40, "vocab.txt": b""}
PACKED = {name: np.frombuffer(content, np.uint8) for name, content in FILES.items()}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: None,
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
    ],
    ids=["none", "missing", "empty", "short", "last byte"],
)
def test_unpacked_checkpoint_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    folder = unpack_checkpoint(PACKED)
    before = (folder / "config.json").stat()
    damage(folder / "model.safetensors")
    assert unpack_checkpoint(PACKED) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert (folder / "config.json").stat().st_mtime_ns == before.st_mtime_ns, "complete files are used again"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").write_text("a file instead of a folder")
    with pytest.raises(StorageError, match="cache/checkpoints/"):
        unpack_checkpoint(PACKED)
