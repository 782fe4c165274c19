"""The same answers, gradients and decisions on a GPU; skipped, and said so, where there is none."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tests.factories.batch_jobs import make_texts, save_model
from tests.factories.networks import CONFIGS, make_inputs, make_network
from tests.factories.runs import needs_encoder
from trainer_step import optimizer_step, phase_trainer

from limbert import ElasticModel, ElasticTrainer, Engine, ExitRule, Policy, Space
from limbert.core.config import PhaseConfig
from limbert.data.readers import Examples
from limbert.inference.load import load_checkpoint
from limbert.inference.predict import predict

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
LABELS = torch.tensor([0, 2, 1])


@pytest.fixture(autouse=True)
def exact() -> None:
    """Products of fp32 in fp32, so that both devices can be compared."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def on_gpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in tensors.items()}


@pytest.mark.parametrize("case", CONFIGS)
@torch.no_grad()
def test_views_match_cpu_logits(case: str) -> None:
    here, there = (ElasticModel(make_network(case)) for _ in range(2))
    there.network.cuda()
    for subnet in here.subnets().values():
        expected = here.view(subnet)(**make_inputs()).logits
        torch.testing.assert_close(
            there.view(subnet)(**on_gpu(make_inputs())).logits.cpu(), expected, atol=1e-4, rtol=1e-4
        )


@needs_encoder
@pytest.mark.parametrize("policy", [Policy(subnet="0.5x1"), Policy(gates=True, exits=ExitRule("entropy", 0.9))])
def test_checkpoint_predicts_as_on_the_cpu(tmp_path: Path, policy: Policy) -> None:
    save_model(tmp_path / "model")
    rows = {}
    for device in ("cpu", "auto"):
        opened = load_checkpoint(tmp_path / "model", device=device)
        assert opened.model.network.device.type == ("cpu" if device == "cpu" else "cuda")
        tokens = opened.tokenize(Examples(tuple(make_texts(40)), None, None))
        rows[device] = predict(opened.model, tokens, task=opened.task, policy=policy, batch_size=8)
    for here, there in zip(rows["cpu"], rows["auto"], strict=True):
        assert here.to_dict()["label"] == there.to_dict()["label"]
        assert here.to_dict()["score"] == pytest.approx(there.to_dict()["score"], abs=1e-4)


def trainer_on(device: str, precision: str = "fp32") -> ElasticTrainer:
    AcceleratorState._reset_state(reset_partial_state=True)  # else it keeps the first device of the process
    model, teacher = (ElasticModel(make_network("bert"), space=Space(layers="spread")) for _ in range(2))
    config = PhaseConfig(
        logit_weight=1.0, hidden_weight=1.0, label_weight=0.5, teacher_width="matched", learning_rate=1e-3
    )
    return phase_trainer("depth", model=model, teacher=teacher, subnets=model.subnets(), config=config,
                         task_type="classification", device=device, precision=precision)  # fmt: skip


def test_training_step_matches_the_cpu() -> None:
    batch = make_inputs() | {"labels": LABELS}
    here = trainer_on("cpu")
    expected = optimizer_step(here)(batch)
    there = trainer_on("cuda")
    loss = optimizer_step(there)(on_gpu(batch))
    torch.testing.assert_close(loss.cpu(), expected, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(here.model.parameters(), there.model.parameters(), strict=True):
        average = there.optimizer.state[theirs]["exp_avg"].cpu()
        torch.testing.assert_close(average, here.optimizer.state[ours]["exp_avg"], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_device(precision: str) -> None:
    step, batch = optimizer_step(trainer_on("cuda", precision)), on_gpu(make_inputs() | {"labels": LABELS})
    step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


def test_the_engine_decides_as_on_the_cpu() -> None:
    policy = Policy(exits=ExitRule("entropy", 1.0))
    here, there = (ElasticModel(make_network("bert"), space=Space(layers="first")) for _ in range(2))
    there.network.cuda()
    expected = Engine(here, policy, task_type="classification").run(make_inputs())
    found = Engine(there, policy, task_type="classification").run(on_gpu(make_inputs()))
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=1e-4, rtol=1e-4)
    assert found.trace.layers_run.tolist() == expected.trace.layers_run.tolist()
