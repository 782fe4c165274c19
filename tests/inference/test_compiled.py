"""Compiled sub-networks equal torch's, are built once, and a cache that cannot be trusted is built again."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.factories.labelled_runs import make_labelled_run
from tests.factories.networks import make_inputs
from tests.factories.runs import needs_encoder

from limbert.core.config import RuntimeConfig
from limbert.core.subnet import Subnet
from limbert.errors import ConfigError, ExportError
from limbert.inference import compiled, runtimes
from limbert.inference.compiled import SubnetCompiler, open_policy, resolve_runtime
from limbert.inference.load import LoadedCheckpoint, load_checkpoint
from limbert.inference.policy import Policy
from limbert.inference.runtimes import RUNTIMES, Runtime, check_runtime
from limbert.method.early_exit import ExitRule

pytestmark = needs_encoder
for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)
INPUTS = make_inputs(batch=3, tokens=9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> LoadedCheckpoint:
    return load_checkpoint(make_labelled_run(tmp_path_factory.mktemp("compiled")))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that ONNX files were written into."""
    folders: list[Path] = []
    original = RUNTIMES["onnxruntime"]
    assert original.write is not None
    write = original.write

    def counted(network: object, folder: Path, inputs: tuple[str, ...]) -> None:
        folders.append(folder)
        write(network, folder, inputs)  # type: ignore[arg-type]

    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", replace(original, write=counted))
    return folders


def compiler(checkpoint: LoadedCheckpoint, folder: Path | None = None, **options: str) -> SubnetCompiler:
    return SubnetCompiler(checkpoint, runtime="onnxruntime", threads=1, cache_dir=folder, **options)  # type: ignore[arg-type]


def assert_predicts_the_same(checkpoint: LoadedCheckpoint, logits: torch.Tensor, name: str = "0.5x1") -> None:
    view = checkpoint.model.view(checkpoint.model.subnet(name))
    with torch.no_grad():
        torch.testing.assert_close(logits, view(**INPUTS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_compiled_sub_network_predicts_the_same(checkpoint: LoadedCheckpoint, runtime: str) -> None:
    pytest.importorskip(runtime)
    network = open_policy(checkpoint, Policy(subnet="0.5x1"), RuntimeConfig(runtime), threads=1)
    assert network is not None
    assert_predicts_the_same(checkpoint, network(INPUTS))
    names = [path.name for path in (Path(checkpoint.path) / "compiled").iterdir()]
    assert len([name for name in names if name.startswith(f"{runtime}-fp32-")]) == 1
    assert not [name for name in names if name.startswith(".")]


def test_each_sub_network_is_built_once(checkpoint: LoadedCheckpoint, tmp_path: Path, written: list[Path]) -> None:
    subnet = checkpoint.model.subnet("0.5x1")
    logits: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: logits.append(compiler(checkpoint, tmp_path).load(subnet)(INPUTS)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert len(logits) == 2
    for part in logits:
        assert_predicts_the_same(checkpoint, part)
    compiler(checkpoint, tmp_path).load(checkpoint.model.full)
    assert len(written) == 2


def truncate(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-7])


def change_weights(folder: Path) -> None:
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_version(folder: Path) -> None:
    path = folder / "compiled.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "of another version"}))


@pytest.mark.parametrize(
    "harm", [truncate, change_weights, other_version, lambda folder: (folder / "compiled.json").write_text("{")]
)
def test_untrusted_cache_is_built_again(
    checkpoint: LoadedCheckpoint, tmp_path: Path, written: list[Path], harm: Callable[[Path], None]
) -> None:
    subnet = checkpoint.model.subnet("0.5x0.5")
    path = compiler(checkpoint, tmp_path).compile(subnet).path
    whole = path.read_bytes()
    harm(path.parent)
    left_by_a_killed_process = path.parent.with_name(f".{path.parent.name}.new-host-1")
    left_by_a_killed_process.mkdir()
    network = compiler(checkpoint, tmp_path).load(subnet)
    assert len(written) == 2
    assert path.read_bytes() == whole
    assert [*tmp_path.iterdir()] == [path.parent]
    assert_predicts_the_same(checkpoint, network(INPUTS), "0.5x0.5")


def test_changed_weights_are_compiled_again(tmp_path: Path, written: list[Path]) -> None:
    changed = load_checkpoint(make_labelled_run(tmp_path))
    before = compiler(changed).load(changed.model.subnet("0.5x1"))(INPUTS)
    with torch.no_grad():
        changed.model.network.classifier.bias.add_(1.0)
    after = compiler(changed).load(changed.model.subnet("0.5x1"))(INPUTS)
    assert len(written) == 2
    assert_predicts_the_same(changed, after)
    assert not torch.allclose(before, after)


def test_wrong_graph_never_predicts(
    checkpoint: LoadedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RUNTIMES["onnxruntime"].write
    assert write is not None

    def write_other(network: object, folder: Path, inputs: tuple[str, ...]) -> None:
        write(checkpoint.model.view(checkpoint.model.full), folder, inputs)

    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", replace(RUNTIMES["onnxruntime"], write=write_other))
    with pytest.raises(ExportError, match="do not match"):
        compiler(checkpoint, tmp_path).load(checkpoint.model.subnet("0.5x1"))
    assert not [*tmp_path.iterdir()]


def test_unwritable_run_gets_a_temporary_cache(tmp_path: Path, written: list[Path]) -> None:
    read_only = load_checkpoint(make_labelled_run(tmp_path))
    (Path(read_only.path) / "compiled").write_text("a file, so that no folder can be made")
    network = compiler(read_only).load(read_only.model.subnet("0.5x1"))
    assert_predicts_the_same(read_only, network(INPUTS))
    assert not written[0].is_relative_to(tmp_path)


def test_loss_of_int8_is_measured_and_limited(
    checkpoint: LoadedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subnet, original = checkpoint.model.full, RUNTIMES["onnxruntime"]
    assert original.write is not None
    assert abs(compiler(checkpoint, tmp_path / "real", precision="int8").compile(subnet).metric_loss) < 0.2
    write = original.write

    def harm(path: Path, load_batches: object) -> None:
        changed = checkpoint.model.extract(subnet).eval()
        with torch.no_grad():
            changed.classifier.weight.neg_()
        write(changed, path.parent, tuple(INPUTS))

    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", replace(original, quantize=harm))
    harmed = compiler(checkpoint, tmp_path / "harmed", precision="int8")
    loss = harmed.compile(subnet).metric_loss
    assert loss > 0.3
    with pytest.raises(ConfigError, match=rf"{100 * loss:.2f} points.*--max-drop"):
        harmed.load(subnet, max_drop=100 * loss - 0.1)
    harmed.load(subnet, max_drop=100 * loss)


def test_int8_without_data_is_refused(checkpoint: LoadedCheckpoint, tmp_path: Path) -> None:
    moved = replace(checkpoint, data_config=replace(checkpoint.data_config, data=str(tmp_path / "moved")))
    with pytest.raises(ConfigError, match=r"moved.*fp32"):
        compiler(moved, tmp_path / "a", precision="int8").load(moved.model.full)
    assert_predicts_the_same(moved, compiler(moved, tmp_path / "b").load(moved.model.full)(INPUTS), "1x1")


def test_auto_takes_the_fastest(checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = []
    for name in RUNTIMES:
        try:
            check_runtime(name)
        except ConfigError:
            continue
        installed.append(name)
    for fastest in installed:
        seconds = iter([0.1 if name == fastest else 0.2 for name in installed for _ in range(compiled._AUTO_ROUNDS)])
        monkeypatch.setattr(SubnetCompiler, "parity_seconds", lambda self, runtime, left=seconds: next(left))
        assert resolve_runtime(checkpoint, checkpoint.model.full, RuntimeConfig("auto"), threads=1) == fastest


def test_auto_skips_a_runtime_that_loses_too_much(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SubnetCompiler, subnet: Subnet, *, max_drop: float = 100.0) -> Runtime:
        raise ConfigError("it costs 9 points")

    monkeypatch.setattr(SubnetCompiler, "load", refuse)
    assert resolve_runtime(checkpoint, checkpoint.model.full, RuntimeConfig("auto"), threads=1) == "torch"
    with pytest.raises(ConfigError, match="9 points"):
        resolve_runtime(checkpoint, checkpoint.model.full, RuntimeConfig("auto", "int8"), threads=1)


def test_unsupported_pairs_are_refused(checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="int4"):
        RuntimeConfig("torch", "int4")  # type: ignore[arg-type]
    pytest.importorskip("openvino")
    monkeypatch.setattr(runtimes, "_openvino_capabilities", lambda: ["FP32", "INT8"])
    with pytest.raises(ConfigError, match="bf16"):
        check_runtime("openvino", "bf16")
    exits = Policy(widths=(0.5,), exits=ExitRule("entropy", 0.5))
    assert open_policy(checkpoint, exits, RuntimeConfig("auto")) is None
