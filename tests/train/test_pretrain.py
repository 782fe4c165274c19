"""Pre-training steps and metrics are what the formulas say, and a trained order is kept."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.factories.corpora import make_sequences, pack_tokens
from tests.factories.networks import make_network
from tests.factories.phases import make_arguments
from tests.factories.tokenizers import byte_level
from transformers import AutoModelForMaskedLM

from limbert import ElasticModel, ElasticTrainer, Space
from limbert.data.mlm.masking import MaskedSequences
from limbert.method.losses import hidden_loss, matched_states
from limbert.train.data import LossScale, shard_batch
from limbert.train.pretrain import evaluate_mlm, mlm_metrics, to_elastic_mlm

TOKENIZER = byte_level(trim=True)
SPECIAL = (int(TOKENIZER.cls_token_id), int(TOKENIZER.sep_token_id), int(TOKENIZER.pad_token_id))


def make_part(count: int = 40, *, first: int = 0) -> MaskedSequences:
    """Some of 60 sequences, the last of which is shorter."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, len(TOKENIZER), size=14 * 60 - 3)
    packed = pack_tokens(tokens, rng.random(tokens.size) < 0.7, max_length=16, special=SPECIAL)
    return make_sequences(packed.select(range(first, first + count)), TOKENIZER)


def make_model() -> ElasticModel:
    network = make_network("bert", AutoModelForMaskedLM, vocab_size=len(TOKENIZER), pad_token_id=TOKENIZER.pad_token_id)
    return to_elastic_mlm(network, Space((0.5, 1.0), (0.5, 1.0)))


def test_step_equals_the_loop_over_all_tokens(tmp_path: Path) -> None:
    model, sequences = make_model(), make_part()
    teacher = ElasticModel(copy.deepcopy(model.network).requires_grad_(False))
    torch.nn.init.normal_(teacher.network.cls.predictions.transform.dense.weight)
    weights = {"label_weight": 0.3, "logit_weight": 0.7, "hidden_weight": 0.2}
    args = make_arguments(tmp_path, task_type="classification", phase="depth", **weights)
    trainer = ElasticTrainer(model, args, teacher=teacher, train_dataset=sequences, eval_dataset=sequences)
    trainer.current_gradient_accumulation_steps = 1
    batch = sequences.prepare_inputs(sequences.collate(range(6)))
    stock, stock_teacher = (ElasticModel(copy.deepcopy(other.network)) for other in (model, teacher))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        target = stock_teacher.network(**inputs, output_hidden_states=True)
    total = torch.zeros(())
    for subnet in trainer.subnets.values():
        with stock.at(subnet) as network:
            output = network(**inputs, output_hidden_states=True)  # logits of every token
            logits, targets = (every.logits.flatten(0, 1)[batch["positions"]] for every in (output, target))
            loss = 0.3 * F.cross_entropy(logits, batch["labels"]) + 0.7 * F.cross_entropy(logits, targets.softmax(-1))
            states = matched_states(target.hidden_states, subnet.layers)
            loss = loss + 0.2 * hidden_loss(output.hidden_states, states, batch["attention_mask"])
            loss.backward()
        total += loss.detach()
    trainer.model.zero_grad()
    found = trainer.training_step(trainer.model, {**batch, "loss_scale": LossScale(1.0, 1.0, 6)})
    torch.testing.assert_close(found, total / 4)
    for (name, own), other in zip(model.network.named_parameters(), stock.network.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_metrics_equal_the_stock_models() -> None:
    model, sequences = make_model(), make_part(20)
    stock = copy.deepcopy(model.network)
    batch = sequences.prepare_inputs(sequences.collate(range(20)))
    logits = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    masked = logits.flatten(0, 1)[batch["positions"]]
    results = evaluate_mlm(model, model.subnets(), sequences=sequences)
    assert [result.subnet for result in results] == ["1x1", "0.5x1", "1x0.5", "0.5x0.5"]
    metrics = results[0].metrics
    assert metrics["loss"] == pytest.approx(F.cross_entropy(masked, batch["labels"]).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((masked.argmax(-1) == batch["labels"]).float().mean().item())
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    small = mlm_metrics(model, {"0.5x0.5": model.subnet("0.5x0.5")}, sequences=sequences, batch_size=7)
    assert small["0.5x0.5"]["loss"] == pytest.approx(results[-1].metrics["loss"], rel=1e-5)


@torch.no_grad()
def test_process_losses_sum_to_the_batch_loss() -> None:
    model, sequences = make_model(), make_part(50, first=10)  # with the shorter last sequence
    batch = sequences.collate(range(50))

    def loss(part: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = sequences.prepare_inputs(part)
        labels = inputs.pop("labels")
        return F.cross_entropy(model.network(**inputs).logits, labels)

    parts = [shard_batch(batch, rank=rank, world_size=3) for rank in range(3)]
    torch.testing.assert_close(sum(scale.labels * loss(part) for part, scale in parts), loss(batch))
