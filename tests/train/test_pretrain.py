"""A pre-training step is what the formulas say, and an order that was trained is kept."""

import copy
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tests.factories.corpora import make_sequences, pack_tokens
from tests.factories.networks import make_network
from tests.factories.phases import make_work
from tests.factories.tokenizers import byte_level
from transformers import AutoModelForMaskedLM

from limbert import ElasticModel, Space
from limbert.core.config import PhaseConfig
from limbert.data.mlm.masking import MaskedSequences
from limbert.errors import ConfigError
from limbert.method.losses import hidden_loss, matched_states
from limbert.model.sparse_prediction import enable_sparse_prediction
from limbert.train.distributed import DistributedContext
from limbert.train.phases import PHASES, check_supervision
from limbert.train.pretrain import MlmPhaseSetup, evaluate_mlm, mlm_scores
from limbert.train.progress import TrainingCallback
from limbert.train.run_folder import RunDirectory
from limbert.train.trainer import Trainer

TOKENIZER = byte_level(trim=True)
SPECIAL = (int(TOKENIZER.cls_token_id), int(TOKENIZER.sep_token_id), int(TOKENIZER.pad_token_id))


def make_rows(count: int = 40, *, first: int = 0) -> MaskedSequences:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, len(TOKENIZER), size=14 * 60 - 3)
    packed = pack_tokens(tokens, rng.random(tokens.size) < 0.7, max_length=16, special=SPECIAL)
    return make_sequences(packed.select(range(first, first + count)), TOKENIZER)


def make_model() -> ElasticModel:
    network = make_network("bert", AutoModelForMaskedLM, vocab_size=len(TOKENIZER), pad_token_id=TOKENIZER.pad_token_id)
    model = ElasticModel(network, space=Space((0.5, 1.0), (0.5, 1.0)))
    enable_sparse_prediction(model.network)
    return model


def test_a_step_equals_the_loop_over_all_tokens() -> None:
    config = PhaseConfig(label_weight=0.3, logit_weight=0.7, hidden_weight=0.2)
    model, rows = make_model(), make_rows()
    teacher = ElasticModel(copy.deepcopy(model.network).requires_grad_(False))
    torch.nn.init.normal_(teacher.network.cls.predictions.transform.dense.weight)
    trainer = Trainer(
        "depth",
        model=model,
        teacher=teacher,
        subnets=tuple(model.subnets().values()),
        config=config,
        task_type="classification",
        context=types.SimpleNamespace(accelerator=Accelerator(), seed=5),
    )
    batch = rows.prepare_inputs(rows.collate(range(6)))
    stock, theirs = (ElasticModel(copy.deepcopy(other.network)) for other in (model, teacher))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        target = theirs.network(**inputs, output_hidden_states=True)
    total = torch.zeros(())
    for subnet in trainer.subnets:
        with stock.at(subnet) as network:
            output = network(**inputs, output_hidden_states=True)  # logits of every token
            asked, answers = output.logits.flatten(0, 1)[batch["positions"]], target.logits.flatten(0, 1)
            loss = 0.3 * F.cross_entropy(asked, batch["labels"])
            loss = loss + 0.7 * F.cross_entropy(asked, answers[batch["positions"]].softmax(-1))
            states = matched_states(target.hidden_states, subnet.layers)
            loss = loss + 0.2 * hidden_loss(output.hidden_states, states, batch["attention_mask"])
            loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(stock.network.parameters(), 1.0)
    trainer.model.network.eval()
    torch.testing.assert_close(trainer.step(batch, step_index=0, learning_rate=1e-3), total / 4)
    for (name, ours), other in zip(model.network.named_parameters(), stock.network.parameters(), strict=True):
        torch.testing.assert_close(
            trainer.optimizer.state[ours]["exp_avg"], 0.1 * other.grad, atol=1e-6, rtol=1e-4, msg=name
        )


@torch.no_grad()
def test_scores_are_those_of_the_stock_model() -> None:
    model, rows = make_model(), make_rows(20)
    stock = copy.deepcopy(model.network)
    batch = rows.prepare_inputs(rows.collate(range(20)))
    logits = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    asked = logits.flatten(0, 1)[batch["positions"]]
    found = evaluate_mlm(model, rows, subnets=model.subnets())
    assert [result.subnet for result in found] == ["1x1", "0.5x1", "1x0.5", "0.5x0.5"]
    metrics = found[0].metrics
    assert metrics["loss"] == pytest.approx(F.cross_entropy(asked, batch["labels"]).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((asked.argmax(-1) == batch["labels"]).float().mean().item())
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    small = mlm_scores(model, rows, subnets={"0.5x0.5": model.subnet("0.5x0.5")}, batch_size=7)
    assert small["0.5x0.5"].loss == pytest.approx(found[-1].metrics["loss"], rel=1e-5)


def make_masked_work(folder: Path, *, keeps_order: bool) -> MlmPhaseSetup:
    workspace = RunDirectory(folder / "run", {"a": 1})
    workspace.create()
    around = types.SimpleNamespace(
        accelerator=Accelerator(),
        seed=5,
        run_dir=workspace,
        callback=TrainingCallback(),
        should_stop=lambda: False,
        checkpoint_every=1e9,
    )
    return MlmPhaseSetup("width", make_model(), make_rows(), make_rows(10, first=40), "fp32", around, keeps_order)


def small_answer(model: ElasticModel) -> torch.Tensor:
    batch = make_rows().collate([3])
    with torch.no_grad(), model.at(model.subnet("0.5x1")) as network:
        return network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("keeps_order", [True, False])
def test_an_order_that_was_trained_is_kept(keeps_order: bool, tmp_path: Path) -> None:
    """Rewiring a model whose first heads were trained to stand alone would put others in their place."""
    work = make_masked_work(tmp_path, keeps_order=keeps_order)
    before = small_answer(work.model)
    PHASES["width"].train(work, PhaseConfig(logit_weight=1.0, learning_rate=1e-12, max_steps=1))
    after = small_answer(work.model)
    assert torch.allclose(before, after, atol=1e-3) is keeps_order


def test_training_lowers_the_loss_of_every_size(tmp_path: Path) -> None:
    work = make_masked_work(tmp_path, keeps_order=False)
    subnets = work.model.subnets()
    config = PhaseConfig(label_weight=1.0, learning_rate=1e-2, epochs=6, batch_size=8)
    before = mlm_scores(work.model, make_rows(), subnets=subnets)
    PHASES["final"].train(work, config)
    after = mlm_scores(work.model, make_rows(), subnets=subnets)
    assert all(after[name].loss < before[name].loss for name in subnets)


def test_phases_know_what_they_learn_from(tmp_path: Path) -> None:
    check_supervision(["mlm", "width", "depth", "final"], "text")
    check_supervision(["finetune", "width", "depth", "final", "gates"], "labels")
    with pytest.raises(ConfigError, match="phase 'gates' cannot learn from text; limbert pretrain has phases width,"):
        check_supervision(["width", "gates"], "text")
    with pytest.raises(ConfigError, match="phase 'mlm' cannot learn from labels; limbert train has phases finetune,"):
        check_supervision(["mlm"], "labels")
    assert make_work(tmp_path).is_rewired is False


@torch.no_grad()
def test_the_shares_of_several_processes_add_up() -> None:
    model, rows = make_model(), make_rows(50, first=10)  # the last sequence of the corpus, a shorter one, among them
    whole = rows.collate(range(50))

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ready = rows.prepare_inputs(batch)
        return F.cross_entropy(
            model.network(**{n: t for n, t in ready.items() if n != "labels"}).logits, ready["labels"]
        )

    total = torch.zeros(())
    for rank in range(3):
        part, share = DistributedContext(world_size=3, rank=rank).shard_batch(whole)
        total += share.labels * loss(part)
    torch.testing.assert_close(total, loss(whole))
