"""One optimizer step is what the formulas say: against a loop that shares nothing."""

import copy
import types

import pytest
import torch
from accelerate import Accelerator
from tests.factories.networks import make_inputs, make_network
from torch.utils._python_dispatch import TorchDispatchMode

from limbert import ElasticModel, Space, Subnet
from limbert.core.config import PhaseConfig
from limbert.method.losses import hidden_loss, label_loss, logit_loss, matched_states
from limbert.train.trainer import Trainer

LABELS = torch.tensor([0, 2, 1])


def make_trainer(config: PhaseConfig, *, rule: str = "spread", teacher: bool = True, name: str = "depth") -> Trainer:
    model = ElasticModel(make_network("bert"), space=Space(layers=rule))
    taught_by = ElasticModel(make_network("bert", initializer_range=0.3)) if teacher else None
    return Trainer(
        name,
        model=model,
        teacher=taught_by,
        subnets=tuple(model.subnets().values()),
        config=config,
        task_type="classification",
        context=types.SimpleNamespace(accelerator=Accelerator(), seed=5),
    )


@pytest.mark.parametrize("teacher_width", ["full", "matched"])
@pytest.mark.parametrize("rule", ["first", "spread"])
def test_a_step_equals_the_textbook_loop(rule: str, teacher_width: str) -> None:
    config = PhaseConfig(
        label_weight=0.3, logit_weight=0.7, hidden_weight=0.2, teacher_width=teacher_width, full_weight=2.0
    )
    trainer = make_trainer(config, rule=rule)
    inputs = make_inputs()
    reference = copy.deepcopy(trainer.model.network)
    plain = ElasticModel(reference)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, eps=1e-8, weight_decay=0.0)
    total = torch.zeros(())
    for subnet in trainer.subnets:
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
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    weights = [parameter.detach().clone() for parameter in reference.parameters()]
    optimizer.step()

    trainer.model.network.eval()
    loss = trainer.step(inputs | {"labels": LABELS}, step_index=0, learning_rate=1e-3)

    torch.testing.assert_close(loss, total / 12)
    # AdamW turns the sign of a gradient that is 0 but for rounding (a key's bias) into a whole step, so compare what it
    # remembers of the clipped gradients instead of the weights.
    for (name, ours), theirs in zip(trainer.model.network.named_parameters(), reference.parameters(), strict=True):
        remembered = trainer.optimizer.state[ours]["exp_avg"], optimizer.state[theirs]["exp_avg"]
        torch.testing.assert_close(*remembered, atol=1e-6, rtol=1e-4, msg=name)
    moved = [not torch.equal(*pair) for pair in zip(weights, trainer.model.network.parameters(), strict=True)]
    assert all(moved)


class HostReads(TorchDispatchMode):
    """Counts what makes a program wait for the device: values of tensors that Python looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", ["first", "spread"])
def test_a_step_reads_no_value_from_the_device(rule: str) -> None:
    trainer = make_trainer(PhaseConfig(logit_weight=1.0, hidden_weight=1.0, teacher_width="matched"), rule=rule)
    trainer.model.network.train()
    batch = make_inputs() | {"labels": LABELS}
    trainer.step(batch, step_index=0, learning_rate=1e-3)
    with HostReads() as reads:
        loss = trainer.step(batch, step_index=1, learning_rate=1e-3)
        assert reads.count == 0
        loss.item()
    assert reads.count == 1


def test_without_a_teacher_only_labels_count() -> None:
    trainer = make_trainer(PhaseConfig(label_weight=1.0, logit_weight=9.0, hidden_weight=9.0), teacher=False)
    trainer.model.network.eval()
    with torch.no_grad():
        losses = [
            label_loss(trainer.model.view(subnet)(**make_inputs()).logits, LABELS, task_type="classification")
            for subnet in trainer.subnets
        ]
    loss = trainer.step(make_inputs() | {"labels": LABELS}, step_index=0, learning_rate=0.0)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_sampling_keeps_both_ends_and_follows_the_step_number() -> None:
    trainer = make_trainer(PhaseConfig(label_weight=1.0, sampled=4), teacher=False)
    chosen = [trainer._sample_subnets(number) for number in range(40)]
    assert all(len(subnets) == 4 for subnets in chosen)
    assert all(subnets[0] == trainer.subnets[0] and subnets[-1] == trainer.subnets[-1] for subnets in chosen)
    assert {subnet for subnets in chosen for subnet in subnets} == {*trainer.subnets}
    assert trainer._sample_subnets(7) == chosen[7]
    everything = make_trainer(PhaseConfig(label_weight=1.0), teacher=False)
    assert everything._sample_subnets(0) == everything.subnets


def test_learning_rate_rises_and_falls_linearly() -> None:
    trainer = make_trainer(PhaseConfig(label_weight=1.0, learning_rate=0.1, warmup=0.2), teacher=False)
    rates = [trainer._learning_rate(step, 10) for step in range(10)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.0875, 0.075, 0.0625, 0.05, 0.0375, 0.025, 0.0125])


def test_dropout_follows_the_step_number_alone() -> None:
    losses = []
    for junk in (1, 2):
        trainer = make_trainer(PhaseConfig(label_weight=1.0), teacher=False)
        for module in trainer.model.network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        trainer.model.network.train()
        torch.manual_seed(junk)
        losses.append(trainer.step(make_inputs() | {"labels": LABELS}, step_index=3, learning_rate=0.0))
    assert torch.equal(*losses)
