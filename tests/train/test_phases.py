"""A phase grafts when and as its settings say, by scores of the validation slice."""

from pathlib import Path

import pytest
import torch
from tests.factories.distributed_worker import make_work as make_case
from tests.factories.phases import make_work
from tests.train.test_pretrain import make_masked_work

from limbert.core.config import PhaseConfig
from limbert.core.task_types import IGNORE_INDEX
from limbert.method.importance import importance_from_micro_batches
from limbert.model.width_gates import WidthGates
from limbert.train import phases as subnet_phase
from limbert.train.context import PhaseSetup
from limbert.train.distributed import DistributedContext
from limbert.train.phases import PHASES

STEPS = {"batch_size": 30, "epochs": 3.0, "logit_weight": 1.0, "hidden_weight": 0.1, "learning_rate": 1e-4}


def train(folder: Path, config: PhaseConfig) -> dict[str, torch.Tensor]:
    work = make_work(folder, rows=90)
    work.context.checkpoint_every = 1e9
    work.model.gates = WidthGates(num_gates=1, hidden_size=48, widths=(0.5, 1.0))
    PHASES["width"].train(work, config)
    assert work.model.gates is None  # they fitted the weights before
    return work.model.network.state_dict()


def test_grafting_three_times_an_epoch_until_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(tmp_path / "plain", PhaseConfig(**STEPS))
    real, calls = subnet_phase.graft, []

    def noted(model: object, scores: object, **settings: float) -> None:
        expected = importance_from_micro_batches(model, make_work(tmp_path / "other").importance_batches(30))
        torch.testing.assert_close(scores.heads, expected.heads)  # the validation slice's, at this moment
        calls.append(settings)
        real(model, scores, **settings)

    monkeypatch.setattr(subnet_phase, "graft", noted)
    grafted = train(tmp_path / "grafted", PhaseConfig(**STEPS, grafts=3, graft_rate=0.2, graft_share=0.25))
    assert calls == [{"rate": 0.2, "weak_fraction": 0.25}] * 6  # three steps an epoch: after each of the first six
    assert any(not torch.equal(plain[name], grafted[name]) for name in plain)


def make_scored(case: str, folder: Path) -> PhaseSetup:
    work = make_masked_work(folder, keeps_order=False) if case == "hidden words" else make_case(case, folder)
    work.model.network.double()
    return work


@pytest.mark.parametrize("case", ["final", "finetune", "tokens", "hidden words"])
def test_scores_do_not_depend_on_the_pieces_of_a_batch(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes the main one scores their whole batches, with no more rows in memory than it trains on."""
    work = make_scored(case, tmp_path)
    whole = importance_from_micro_batches(work.model, work.importance_batches(24))
    assert whole.neurons.min() > 0
    for count in (3, 40):  # more processes than rows: a row a piece
        monkeypatch.setattr(
            DistributedContext, "from_accelerator", classmethod(lambda cls, _, count=count: cls(count, 0))
        )
        batches = [[*pieces] for pieces in work.importance_batches(24)]
        largest = max(len(piece["input_ids"]) for pieces in batches for piece, _ in pieces)
        assert largest == -(-min(24, len(work.eval_dataset)) // count)
        assert all(sum(share for _, share in pieces) == pytest.approx(1) for pieces in batches)
        found = importance_from_micro_batches(work.model, batches)
        torch.testing.assert_close(found.heads, whole.heads, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.neurons, whole.neurons, rtol=1e-6, atol=1e-9)


def test_a_batch_without_labels_scores_nothing(tmp_path: Path) -> None:
    work = make_case("tokens", tmp_path)
    work.eval_dataset.labels.fill_(IGNORE_INDEX)
    assert importance_from_micro_batches(work.model, work.importance_batches(24)).heads.max() == 0
