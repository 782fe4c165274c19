"""Batch prediction on Ray: predictions equal the plain engine's, each row once, whichever process was killed."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.dataset
import pytest
import torch
from tests.factories.batch_jobs import POLICY, make_texts, save_model, write_parquet
from tests.factories.object_store import object_store, use_keys
from tests.factories.runs import command, environment, needs_encoder

from limbert.data.readers import Examples
from limbert.data.tasks import custom_task
from limbert.errors import ConfigError, DataError, StorageError
from limbert.inference import ray as module
from limbert.inference.pipeline import Pipeline, pipeline
from limbert.inference.ray import (
    BatchPredictionResult,
    ShardWorker,
    predict_files,
    prediction_schema,
    ray_session,
    unpack_checkpoint,
)
from limbert.inference.shards import Shard

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
def pipe(folder: Path) -> Pipeline:
    return pipeline(folder / "model", policy=POLICY)


def run_one_worker(
    shards: Sequence[Shard], files: Mapping[str, bytes], job: Mapping[str, Any], *, workers: int
) -> Iterator[tuple[Shard, int]]:
    worker = ShardWorker(files, **job)
    return ((shard, worker.predict(shard)) for shard in shards)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker in this process instead of two in others, which take seconds to start."""
    session = nullcontext(SimpleNamespace(cluster_resources=lambda: {"CPU": 1}))
    monkeypatch.setattr(module, "ray_session", lambda **_: session)
    monkeypatch.setattr(module, "_run_workers", run_one_worker)


def predict_folder(
    folder: Path, pipe: Pipeline, output: str, *, input: str = "in", shard_rows: int = SHARD_ROWS, **options: Any
) -> BatchPredictionResult:
    input, output = (path if "://" in path else str(folder / path) for path in (input, output))
    return predict_files(pipe, input, output, shard_rows=shard_rows, workers=2, threads=1, **options)


def read_output(folder: Path) -> list[dict[str, Any]]:
    return pyarrow.dataset.dataset(folder).to_table().to_pylist()


def predict_plainly(pipe: Pipeline, texts: Sequence[str], shard_rows: Sequence[int]) -> list[dict[str, Any]]:
    """By the plain engine, shard by shard: the widths of batches change the last bits."""
    rows: list[dict[str, Any]] = []
    for count in shard_rows:
        predictions = pipe.predict(Examples(tuple(texts[len(rows) : len(rows) + count]), None, None))
        rows += [prediction.to_dict() | prediction.cost_to_dict() for prediction in predictions]
    return rows


def check_output(output: Path, pipe: Pipeline, shard_rows: Sequence[int]) -> None:
    rows = read_output(output)
    predictions = enumerate(predict_plainly(pipe, TEXTS, shard_rows))
    assert rows == [{"id": index, "text": TEXTS[index]} | prediction for index, prediction in predictions]
    assert len({row["label"] for row in rows}) > 1
    assert len({row["layers"] for row in rows}) > 1


@pytest.mark.usefixtures("without_ray")
def test_predictions_equal_the_plain_engines(folder: Path, pipe: Pipeline) -> None:
    result = predict_folder(folder, pipe, "predicted")
    assert (result.rows, result.shards, result.resumed) == (400, 15, 0)
    check_output(folder / "predicted", pipe, ([30] * 4 + [14] + ([30] * 4 + [13]) * 2))


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("task_type", ["regression", "multi-label"])
def test_other_task_types_predict_the_same(folder: Path, task_type: Any) -> None:
    task = custom_task(task_type, ("a", "b", "c") if task_type == "multi-label" else ())
    pipe = pipeline(save_model(folder / task_type, task), subnet="0.5x0.5")
    predict_folder(folder, pipe, f"{task_type}-out", shard_rows=400, keep_columns=("id",))
    rows = read_output(folder / f"{task_type}-out")
    predictions = predict_plainly(pipe, TEXTS, [134, 133, 133])
    assert rows == [{"id": index} | prediction for index, prediction in enumerate(predictions)]
    assert [*rows[0]] == ["id", *prediction_schema(task).names]


@pytest.mark.usefixtures("without_ray")
def test_other_runtimes_predict_the_same(folder: Path) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    torch_pipe = pipeline(folder / "model", subnet="0.5x0.5")
    onnx_pipe = pipeline(folder / "model", subnet="0.5x0.5", runtime="onnxruntime")
    predict_folder(folder, onnx_pipe, "onnx", shard_rows=400, keep_columns=("id",))
    rows = read_output(folder / "onnx")
    expected = predict_plainly(torch_pipe, TEXTS, [134, 133, 133])
    for name in ("label", "layers", "flops"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in expected], abs=1e-4)
    with pytest.raises(ConfigError, match="runtime"):
        predict_folder(folder, torch_pipe, "onnx", shard_rows=400, keep_columns=("id",))


def kill_a_worker(driver: int) -> None:
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            if "ShardWorker" in "".join(process.cmdline()):
                process.kill()
                return
    pytest.fail("no worker runs")


def test_each_row_once_after_a_kill(folder: Path, pipe: Pipeline) -> None:
    """The first driver ends after some shards; a worker of the second, on the same Ray, is killed."""

    def stop(step: str, done: int, total: int) -> None:
        if step == "predicting rows" and done >= 40:
            raise KeyboardInterrupt

    killed: list[int] = []

    def kill(step: str, done: int, total: int) -> None:
        if step == "predicting rows" and done >= 120 and not killed:
            killed.append(done)
            kill_a_worker(os.getpid())

    with ray_session(cpus=2):
        with pytest.raises(KeyboardInterrupt):
            predict_folder(folder, pipe, "killed", shard_rows=4, progress=stop)
        finished = {path: path.stat().st_mtime_ns for path in (folder / "killed").glob("part-*")}
        assert 10 <= len(finished) < 102
        result = predict_folder(folder, pipe, "killed", shard_rows=4, progress=kill)
        check_refusals(folder, pipe)
    assert killed
    assert (result.rows, result.shards) == (400, 102)
    assert result.resumed >= len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    check_output(folder / "killed", pipe, [4] * 33 + [2] + [4] * 33 + [1] + [4] * 33 + [1])


def check_refusals(folder: Path, pipe: Pipeline) -> None:
    """What a worker refuses is the driver's error, and a shard on which workers die is named."""

    class Worker(ShardWorker):
        def predict(self, shard: Shard) -> int:
            if shard.path.endswith("gap/texts-1.parquet"):
                os._exit(1)
            return super().predict(shard)

    write_parquet(folder / "gap", [*TEXTS[:8], None, *TEXTS[:9]], files=2, row_group=7)
    with pytest.raises(DataError, match=r"^/.*texts-0\.parquet:9: no text"):
        predict_folder(folder, pipe, "gap-out", input="gap/texts-0.parquet", shard_rows=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ShardWorker", Worker)
        patch.setattr(module, "MAX_ATTEMPTS", 2)
        with pytest.raises(DataError, match=r"texts-1\.parquet: .* 2 times on rows 1 to 9 "):
            predict_folder(folder, pipe, "gap-out-2", input="gap", skip_bad_rows=True)
    assert [path.name for path in (folder / "gap-out-2").glob("part-*")] == ["part-00000.parquet"]


@pytest.mark.slow
def test_100000_rows_once_after_kills(folder: Path, pipe: Pipeline) -> None:
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
    predictions = predict_plainly(pipe, texts, [400] * 62)
    assert [row["label"] for row in rows[: len(predictions)]] == [row["label"] for row in predictions]


@pytest.mark.usefixtures("without_ray")
def test_finished_shards_stay(folder: Path, pipe: Pipeline) -> None:
    predict_folder(folder, pipe, "resumed", shard_rows=100)
    shards = sorted((folder / "resumed").glob("part-*"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards}
    shards[1].unlink()
    half = folder / "resumed" / ".part-00001.parquet.new-1-ab"
    half.write_bytes(b"the first half of a shard")
    os.utime(half, (1, 1))
    result = predict_folder(folder, pipe, "resumed", shard_rows=100)
    assert result.resumed == len(shards) - 1
    assert {path: path.read_bytes() for path in shards} == {path: content for path, (content, _) in before.items()}
    assert [path for path in shards if path.stat().st_mtime_ns != before[path][1]] == [shards[1]]
    assert {path.name for path in (folder / "resumed").iterdir()} == {"_limbert.json", *(path.name for path in shards)}


@pytest.mark.usefixtures("without_ray")
def test_other_settings_or_input_are_refused(folder: Path, pipe: Pipeline) -> None:
    predict_folder(folder, pipe, "settled", shard_rows=100)
    with pytest.raises(ConfigError, match=r"policy .*static:1x0.5"):
        predict_folder(folder, pipeline(folder / "model", subnet="1x0.5"), "settled", shard_rows=100)
    with pytest.raises(ConfigError, match="shard_rows 100 -> 90"):
        predict_folder(folder, pipe, "settled", shard_rows=90)
    with pytest.raises(ConfigError, match="is not empty"):
        predict_folder(folder, pipe, "in")
    with pytest.raises(ConfigError, match="question-answering"):
        prediction_schema(custom_task("question-answering", ()))
    status = (folder / "in" / "texts-1.parquet").stat()
    os.utime(folder / "in" / "texts-1.parquet", (1, 1))
    with pytest.raises(ConfigError, match=r"input .*texts-1\.parquet \["):
        predict_folder(folder, pipe, "settled", shard_rows=100)
    os.utime(folder / "in" / "texts-1.parquet", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "settled" / "_limbert.json").write_text("[]")
    with pytest.raises(ConfigError, match="choose another folder"):
        predict_folder(folder, pipe, "settled", shard_rows=100)


@pytest.mark.usefixtures("without_ray")
def test_an_overtaken_driver_predicts_nothing(folder: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another driver started at the same time with other settings, and its settings stayed."""
    record, session = folder / "overtaken" / "_limbert.json", module.ray_session

    def start_session(**options: Any) -> Any:
        record.write_text(record.read_text().replace('"fp32"', '"bf16"'))
        return session(**options)

    monkeypatch.setattr(module, "ray_session", start_session)
    with pytest.raises(ConfigError, match='precision "bf16" -> "fp32"'):
        predict_folder(folder, pipe, "overtaken")
    assert [*record.parent.iterdir()] == [record]


@pytest.mark.usefixtures("without_ray")
def test_object_store_output_equals_local_output(folder: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    predict_folder(folder, pipe, "on-disk")
    use_keys(monkeypatch)
    objects = {f"bucket/in/{path.name}": path.read_bytes() for path in (folder / "in").iterdir()}
    with object_store(objects) as options:
        uris = {"input": f"s3://bucket/in/*.parquet{options}", "output": f"s3://bucket/out{options}"}
        result = predict_folder(folder, pipe, **uris)
        again = predict_folder(folder, pipe, **uris)
    assert result.rows == 400
    assert (again.resumed, again.workers) == (result.shards, 0)
    for path in (folder / "on-disk").glob("part-*"):
        assert objects[f"bucket/out/{path.name}"] == path.read_bytes()


@pytest.mark.usefixtures("without_ray")
def test_rows_without_text_stop_or_stay_empty(folder: Path, pipe: Pipeline) -> None:
    texts: list[str | None] = [*TEXTS[:20]]
    texts[3] = None
    texts[10:20] = [" "] * 10  # a whole shard
    write_parquet(folder / "gaps", texts, files=1, row_group=7)
    with pytest.raises(DataError, match=r"texts-0\.parquet:(4|11): "):
        predict_folder(folder, pipe, "stopped", input="gaps", shard_rows=10)
    result = predict_folder(folder, pipe, "stopped", input="gaps", shard_rows=10, skip_bad_rows=True)
    assert (result.rows, result.bad_rows) == (20, 11)
    rows = read_output(folder / "stopped")
    assert [row["text"] for row in rows] == texts
    assert [row["id"] for row in rows if row["label"] is None] == [3, *range(10, 20)]
    assert {row["layers"] for row in rows if row["label"] is None} == {None}
    usable = [text for text in texts if text and text.strip()]
    expected = [row["label"] for row in predict_plainly(pipe, usable, [len(usable)])]
    assert [row["label"] for row in rows if row["label"]] == expected


FILES = {"config.json": b"{}", "model.safetensors": bytes(range(1, 251)) * 40, "vocab.txt": b""}


@pytest.mark.parametrize("damage", [
    lambda path: None, lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
], ids=["none", "missing", "short", "last byte"])  # fmt: skip
def test_unpacked_checkpoint_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    folder = unpack_checkpoint(FILES)
    before = (folder / "config.json").stat()
    damage(folder / "model.safetensors")
    assert unpack_checkpoint(FILES) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert (folder / "config.json").stat().st_mtime_ns == before.st_mtime_ns, "complete files are used again"
    monkeypatch.setenv("LIMBERT_CACHE", str(folder / "config.json"))
    with pytest.raises(StorageError, match="checkpoints/"):
        unpack_checkpoint(FILES)
