"""A phase grafts when and as its settings say, by scores of the validation slice."""

from pathlib import Path

import pytest
import torch
from test_gate_phase import make_work

from limbert.core.config import PhaseConfig
from limbert.method.importance import importance
from limbert.model.gates import WidthGates
from limbert.run import subnet_phase
from limbert.run.phases import PHASES

STEPS = {"batch_size": 30, "epochs": 3.0, "logit_weight": 1.0, "hidden_weight": 0.1, "learning_rate": 1e-4}


def train(folder: Path, config: PhaseConfig) -> dict[str, torch.Tensor]:
    work = make_work(folder, rows=90)
    work.surroundings.checkpoint_every = 1e9
    work.model.gates = WidthGates(count=1, hidden=48, widths=(0.5, 1.0))
    PHASES["width"].train(work, config)
    assert work.model.gates is None  # they fitted the weights before
    return work.model.network.state_dict()


def test_grafting_three_times_an_epoch_until_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(tmp_path / "plain", PhaseConfig(**STEPS))
    real, calls = subnet_phase.graft, []

    def noted(model: object, scores: object, **settings: float) -> None:
        expected = importance(model, make_work(tmp_path / "other").scoring_batches(30))
        torch.testing.assert_close(scores.heads, expected.heads)  # the validation slice's, at this moment
        calls.append(settings)
        real(model, scores, **settings)

    monkeypatch.setattr(subnet_phase, "graft", noted)
    grafted = train(tmp_path / "grafted", PhaseConfig(**STEPS, grafts=3, graft_rate=0.2, graft_share=0.25))
    assert calls == [{"rate": 0.2, "share": 0.25}] * 6  # three steps an epoch: after each of the first six
    assert any(not torch.equal(plain[name], grafted[name]) for name in plain)
