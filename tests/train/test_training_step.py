"""One optimizer step is what the formulas say, whatever is shared."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.factories.networks import make_inputs, make_network
from tests.factories.phases import make_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from limbert import ElasticModel, ElasticTrainer, Space, Subnet
from limbert.method.losses import hidden_loss, label_loss, logit_loss, matched_states
from limbert.train.data import LossScale

LABELS = torch.tensor([0, 2, 1])
WHOLE = LossScale(tokens=1.0, labels=1.0, batch_size=3)


def step_trainer(folder: Path, *, rule: str = "spread", teacher: bool = True, **settings: Any) -> ElasticTrainer:
    """A trainer that is ready for single steps, with an optimizer and a loader made."""
    model = ElasticModel(make_network("bert"), space=Space(layers=rule))
    taught_by = ElasticModel(make_network("bert", initializer_range=0.3)) if teacher else None
    trainer = make_trainer(folder, model, teacher=taught_by, phase="depth", learning_rate=1e-3, **settings)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def gradients(trainer: ElasticTrainer, *, step: int = 0) -> torch.Tensor:
    """Of one step, without the optimizer's; the loss."""
    trainer.state.global_step = step
    trainer.model.zero_grad()
    return trainer.training_step(trainer.model, make_inputs() | {"labels": LABELS, "loss_scale": WHOLE})


@pytest.mark.parametrize("teacher_width", ["full", "matched"])
@pytest.mark.parametrize("rule", ["first", "spread"])
def test_gradients_equal_the_textbook_loop(rule: str, teacher_width: str, tmp_path: Path) -> None:
    weights = {"label_weight": 0.3, "logit_weight": 0.7, "hidden_weight": 0.2, "full_weight": 2.0}
    trainer = step_trainer(tmp_path, rule=rule, teacher_width=teacher_width, **weights)
    inputs = make_inputs()
    reference = copy.deepcopy(trainer.model)
    plain = ElasticModel(reference)
    total = torch.zeros(())
    for subnet in trainer.subnets.values():
        width = subnet.heads[0] / plain.shape.heads if teacher_width == "matched" else 1.0
        with torch.no_grad(), trainer.teacher.at(Subnet.uniform(plain.shape, width=width)) as network:
            target = network(**inputs, output_hidden_states=True)
        with plain.at(subnet) as network:
            output = network(**inputs, output_hidden_states=True)
            loss = 0.3 * label_loss(output.logits, LABELS, task_type="classification")
            loss = loss + 0.7 * logit_loss(output.logits, target.logits, task_type="classification")
            states = matched_states(target.hidden_states, subnet.layers)
            loss = loss + 0.2 * hidden_loss(output.hidden_states, states, inputs["attention_mask"])
            loss = loss * (2.0 if subnet == plain.full else 1.0)
            loss.backward()
        total += loss.detach()
    torch.testing.assert_close(gradients(trainer), total / 12)
    largest = max(float(weight.grad.abs().max()) for weight in reference.parameters())
    for (name, ours), theirs in zip(trainer.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad / largest, theirs.grad / largest, atol=1e-5, rtol=1e-4, msg=name)


class HostReads(TorchDispatchMode):
    """Counts what makes a program wait for the device: values of tensors that Python looks at."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


class ReadsPerStep(TrainerCallback):
    """Counts host reads between the ends of two steps."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.mode = HostReads()
        self.mode.__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.mode.__exit__(None, None, None)
        self.counts.append(self.mode.count)


@pytest.mark.parametrize("rule", ["first", "spread"])
def test_a_step_reads_no_value_from_the_device(rule: str, tmp_path: Path) -> None:
    reads = ReadsPerStep()
    model, teacher = (ElasticModel(make_network("bert"), space=Space(layers=rule)) for _ in range(2))
    settings = {"teacher_width": "matched", "max_steps": 4, "save_strategy": "no"}
    make_trainer(tmp_path, model, teacher=teacher, callbacks=[reads], **settings).train()
    assert reads.counts[1:] == [0, 0, 0]


def test_without_a_teacher_only_labels_count(tmp_path: Path) -> None:
    trainer = step_trainer(tmp_path, teacher=False, logit_weight=9.0, hidden_weight=9.0)
    with torch.no_grad():
        losses = [
            label_loss(trainer.elastic.view(subnet)(**make_inputs()).logits, LABELS, task_type="classification")
            for subnet in trainer.subnets.values()
        ]
    torch.testing.assert_close(gradients(trainer), torch.stack(losses).mean())


def test_sampling_keeps_both_ends(tmp_path: Path) -> None:
    trainer = step_trainer(tmp_path, teacher=False, sampled_subnets=4)
    subnets = tuple(trainer.subnets.values())
    chosen = [trainer.choose_subnets(step) for step in range(40)]
    assert all(len(found) == 4 for found in chosen)
    assert all(found[0] == subnets[0] and found[-1] == subnets[-1] for found in chosen)
    assert {subnet for found in chosen for subnet in found} == {*subnets}
    assert trainer.choose_subnets(7) == chosen[7]
    assert step_trainer(tmp_path, teacher=False).choose_subnets(0) == subnets


def test_dropout_follows_the_step_alone(tmp_path: Path) -> None:
    losses = []
    for junk in (1, 2):
        trainer = step_trainer(tmp_path, teacher=False)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        torch.manual_seed(junk)
        losses.append(gradients(trainer, step=3))
    assert torch.equal(*losses)
