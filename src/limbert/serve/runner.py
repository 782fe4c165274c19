"""Runs texts through the engines, one a size, all on the weights of one model. Owned by one thread."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from limbert.core.config import Precision, TaskType
from limbert.inference.engine import Engine
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.serve.latency_model import LatencyModel
from limbert.serve.tokenizer import FastTokenizer, TokenizedText
from limbert.serve.variants import ModelVariants


@dataclass(frozen=True, slots=True)
class TextOutput:
    """The answer to one text.

    Attributes:
        logits: ``(outputs,)``.
        size: name of the size that answered.
        tokens: that the text became.
        truncated: whether it was cut.
        flops: floating-point operations that it took.
        layers: that ran.
        widths: ``(layers of the full model,)``, the width that each ran at, 0.0 where it did not.
    """

    logits: tuple[float, ...]
    variant: str
    tokens: int
    truncated: bool
    flops: int
    layers: int
    widths: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """Where the time went, in seconds, of the request's slowest text."""

    tokenization: float
    queue: float
    inference: float


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answers to a request, in the order of its texts."""

    outputs: tuple[TextOutput, ...]
    timing: RequestTiming


_SMALL_BATCH, _LARGE_BATCH = (1, 16), (8, 32)  # (texts, tokens) that are measured at the start
_CALIBRATION_ROUNDS = 4


class ModelRunner:
    """All sizes of a menu, ready to run.

    Args:
        model: in evaluation mode; its weights are shared.
        menu: what it can run as.
        encoder: says how to pad.
        kind: what the outputs mean.
        precision: ``"bf16"`` runs under autocast.

    Raises:
        UnsupportedModelError: if the task head is none for sequence classification.
    """

    def __init__(
        self,
        model: ElasticModel,
        variants: ModelVariants,
        tokenizer: FastTokenizer,
        *,
        task_type: TaskType,
        precision: Precision,
    ) -> None:
        self._tokenizer, self._cost = tokenizer, CostModel(model)
        self._device, self._model = model.network.device, model
        self._engines = {
            size.name: Engine(model, size.policy, task_type=task_type, precision=precision)
            for size in variants.variants
        }
        self._static_subnets = {
            size.name: _StaticSubnet(self._engines[size.name], model, size.policy.subnet)
            for size in variants.variants
            if size.policy.subnet is not None
        }
        self._nominal_flops = {size.name: size.flops for size in variants.variants}
        self._flops: dict[tuple[str, int], int] = {}  # by sub-network and tokens

    def run(self, variant: str, texts: Sequence[TokenizedText]) -> list[TextOutput]:
        """Answer a batch, in order, each text as it would be answered alone."""
        answer = self._engines[variant].run(self._collate(texts))
        logits = answer.logits.tolist()  # waits for the device
        static = self._static_subnets.get(variant)
        if static is not None:
            return [
                TextOutput(
                    tuple(row), variant, len(text.input_ids), text.truncated, self._subnet_flops(static.subnet, len(text.input_ids)),
                    static.layers, static.widths,
                )
                for row, text in zip(logits, texts, strict=True)
            ]  # fmt: skip
        trace = answer.trace
        spent = zip(trace.flops.tolist(), trace.layers_run.tolist(), trace.widths.tolist(), strict=True)
        return [
            TextOutput(tuple(row), variant, len(text.input_ids), text.truncated, int(flops), layers, tuple(widths))
            for row, text, (flops, layers, widths) in zip(logits, texts, spent, strict=True)
        ]

    def calibrate(self, *, max_length: int, time_budget: float) -> dict[str, LatencyModel]:
        """Measure how long batches take at each size.

        The sizes take turns, and the quickest round counts: whatever else the machine does meanwhile shows in the
        speeds that are followed later. Where the time does not suffice, FLOPs say the rest.

        Args:
            max_tokens: longest input.
            seconds: for all of it; the largest size is measured in any case.
        """
        end = time.perf_counter() + time_budget
        batches = [self._random_batch(*shape, max_length=max_length) for shape in (_SMALL_BATCH, _LARGE_BATCH)]
        best: dict[str, list[float]] = {}
        for _ in range(_CALIBRATION_ROUNDS):
            for size in self._engines:
                if best and time.perf_counter() > end:
                    break
                taken = [self._measure(size, batch) for batch in batches]
                best[size] = [min(pair) for pair in zip(best.get(size, taken), taken, strict=True)]
        few, many = (sum(len(text.input_ids) for text in batch) for batch in batches)
        lines = {size: LatencyModel.fit((few, short), (many, long)) for size, (short, long) in best.items()}
        known, line = next(iter(lines.items()))
        for size in self._engines.keys() - lines.keys():
            share = self._nominal_flops[size] / self._nominal_flops[known]
            lines[size] = LatencyModel(line.fixed, line.per_token * share)
        return lines

    def _measure(self, variant: str, batch: Sequence[TokenizedText]) -> float:
        start = time.perf_counter()
        self.run(variant, batch)
        return time.perf_counter() - start

    def _random_batch(self, batch_size: int, sequence_length: int, *, max_length: int) -> list[TokenizedText]:
        """A batch of random tokens, which runs as long as a real one."""
        shape = (batch_size, min(sequence_length, max_length))
        ids = np.random.default_rng(0).integers(0, self._model.network.config.vocab_size, shape)
        return [
            TokenizedText(row, np.zeros_like(row) if self._tokenizer.uses_token_types else None, False) for row in ids
        ]

    def _collate(self, texts: Sequence[TokenizedText]) -> dict[str, torch.Tensor]:
        """The batch ``(texts, tokens)``, padded on the right to its longest."""
        lengths = np.array([len(text.input_ids) for text in texts])
        mask = np.arange(lengths.max()) < lengths[:, None]
        batch = {"input_ids": _pad([text.input_ids for text in texts], mask, fill=self._tokenizer.pad_token_id)}
        batch["attention_mask"] = mask.astype(np.int64)
        if self._tokenizer.uses_token_types:
            types = [text.token_type_ids for text in texts if text.token_type_ids is not None]
            batch["token_type_ids"] = _pad(types, mask, fill=self._tokenizer.pad_token_type_id)
        return {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}

    def _subnet_flops(self, subnet: str, tokens: int) -> int:
        key = (subnet, tokens)
        if key not in self._flops:
            self._flops[key] = self._cost.flops(self._model.subnet(subnet), tokens)
        return self._flops[key]


class _StaticSubnet:
    """What runs at a static size, the same for every text: a sub-network, or an operating point that is one."""

    def __init__(self, engine: Engine, model: ElasticModel, subnet: str) -> None:
        self.subnet = subnet
        plan = engine.plan
        self.layers = len(plan.layers)
        self.widths = tuple(
            float(plan.options[plan.static_options[layer]].width) if layer in plan.static_options else 0.0
            for layer in range(model.shape.layers)
        )


def _pad(sequences: Sequence[np.ndarray], mask: np.ndarray, *, fill: int) -> np.ndarray:
    """The rows laid where the mask is true, ``fill`` elsewhere."""
    values = np.full(mask.shape, fill, dtype=np.int64)
    values[mask] = np.concatenate(sequences)
    return values
