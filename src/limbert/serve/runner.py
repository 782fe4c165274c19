"""Runs batches of tokenised texts at any variant of one model, and measures their latency. Used by one thread."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from types import MappingProxyType

import numpy as np
import torch

from limbert.core.config import TaskType
from limbert.core.subnet import Subnet
from limbert.inference.engine import Engine
from limbert.inference.policy import ExecutionPlan, resolve_policy
from limbert.inference.runtimes import Runtime
from limbert.inference.segments import CompiledPolicy
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.serve.latency_model import LatencyModel
from limbert.serve.tokenizer import FastTokenizer, TokenizedText
from limbert.serve.variants import FLOPS_SEQUENCE_LENGTH, ModelVariants

_SMALL_BATCH, _LARGE_BATCH = (1, 16), (8, 32)  # (texts, tokens) measured at start
_CALIBRATION_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class TextOutput:
    """The output for one text."""

    logits: tuple[float, ...]  # (outputs,)
    variant: str  # that ran
    tokens: int  # of the input
    truncated: bool
    flops: int  # floating-point operations
    layers: int  # that ran
    widths: tuple[float, ...]  # (layers of the full model,), at which each ran; 0.0: it did not run


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """Seconds that a request spent in each stage; queue and inference of its last text."""

    tokenization: float
    queue: float
    inference: float

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds by stage."""
        return {stage: 1000 * getattr(self, stage) for stage in ("queue", "tokenization", "inference")}


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The outputs of a request, in the order of its texts."""

    outputs: tuple[TextOutput, ...]
    timing: RequestTiming


class ModelRunner:
    """What computes each variant: an engine, all on the weights of one model in evaluation mode, or its runtime.

    The tokenizer says how to pad; ``runtimes`` holds, by name, the variants that are computed outside the engine.

    Raises:
        UnsupportedModelError: if the task head is not one for sequence classification.
    """

    def __init__(
        self,
        model: ElasticModel,
        variants: ModelVariants,
        tokenizer: FastTokenizer,
        *,
        task_type: TaskType,
        runtimes: Mapping[str, Runtime | CompiledPolicy] = MappingProxyType({}),
    ) -> None:
        self._tokenizer, self._cost = tokenizer, CostModel(model)
        self._device, self._model = model.network.device, model
        self._networks = {
            one.name: runtimes.get(one.name) or Engine(model, one.policy, task_type=task_type, precision=one.precision)
            for one in variants.variants
        }
        self._token_multiples = {
            name: 1 if isinstance(network, Engine) else network.token_multiple
            for name, network in self._networks.items()
        }
        self._static: dict[str, _StaticCost] = {}
        for name, policy in ((one.name, one.policy) for one in variants.variants):
            if policy.subnet is not None:
                plan, subnet = resolve_policy(policy, model, task_type=task_type), model.subnet(policy.subnet)
                self._static[name] = _StaticCost(plan, subnet, self._cost, num_layers=model.shape.layers)
        full_flops = self._cost.flops(model.full, FLOPS_SEQUENCE_LENGTH)
        self._nominal_shares = {variant.name: variant.flops / full_flops for variant in variants.variants}

    def run(self, variant: str, texts: Sequence[TokenizedText]) -> list[TextOutput]:
        """The outputs of a batch, in order; each text gets what it gets alone."""
        network, static = self._networks[variant], self._static.get(variant)
        batch = self._collate(texts, multiple=self._token_multiples[variant])
        if isinstance(network, Runtime):
            assert static is not None
            logits = (network(batch) / static.temperature).tolist()
        else:
            output = network.run(batch)
            logits, trace = output.logits.tolist(), output.trace  # waits for the device
        if static is not None:
            costs = [(static.flops(len(text.input_ids)), static.layers, static.widths) for text in texts]
        else:
            columns = zip(trace.flops.tolist(), trace.layers_run.tolist(), trace.widths.tolist(), strict=True)
            costs = [(int(flops), layers, tuple(widths)) for flops, layers, widths in columns]
        return [
            TextOutput(tuple(row), variant, len(text.input_ids), text.truncated, *cost)
            for row, text, cost in zip(logits, texts, costs, strict=True)
        ]

    def check(self) -> None:
        """Run a small batch of the first variant: raises what the model or the device raises."""
        self.run(next(iter(self._networks)), self._random_batch(*_SMALL_BATCH, max_length=_SMALL_BATCH[1]))

    def calibrate(self, *, max_length: int, time_budget: float) -> dict[str, LatencyModel]:
        """Measure the latency of all variants within ``time_budget`` seconds, on inputs up to ``max_length`` tokens.

        Variants take turns and the fastest round counts, since slow ones are due to other programs. Variants that do
        not fit into the time get the latency of the first, scaled by their FLOPs. The inputs are random tokens: of a
        dynamic policy, for which these are easier or harder than texts, the latency is scaled by its FLOPs, too.
        """
        end = time.perf_counter() + time_budget
        batches = [self._random_batch(*shape, max_length=max_length) for shape in (_SMALL_BATCH, _LARGE_BATCH)]
        best: dict[str, list[float]] = {}
        for _ in range(_CALIBRATION_ROUNDS):
            for variant in self._networks:
                if best and time.perf_counter() > end:
                    break
                measured = [self._measure(variant, batch) for batch in batches]
                best[variant] = [min(pair) for pair in zip(best.get(variant, measured), measured, strict=True)]
        few, many = (sum(len(text.input_ids) for text in batch) for batch in batches)
        models = {variant: LatencyModel.fit((few, short), (many, long)) for variant, (short, long) in best.items()}
        for variant in models.keys() - self._static.keys():
            share = self._flops_share(self.run(variant, batches[-1]))
            ratio = self._nominal_shares[variant] / share
            models[variant] = replace(models[variant], per_token=ratio * models[variant].per_token)
        first, model = next(iter(models.items()))
        for variant in self._networks.keys() - models.keys():
            ratio = self._nominal_shares[variant] / self._nominal_shares[first]
            models[variant] = LatencyModel(model.fixed, model.per_token * ratio)
        return {name: replace(model, token_multiple=self._token_multiples[name]) for name, model in models.items()}

    def _flops_share(self, outputs: Sequence[TextOutput]) -> float:
        """FLOPs of outputs as a fraction of the full model's."""
        full = (self._cost.flops(self._model.full, output.tokens) for output in outputs)
        return sum(output.flops for output in outputs) / sum(full)

    def _measure(self, variant: str, batch: Sequence[TokenizedText]) -> float:
        """Seconds of a batch; its processor time where that is less: other programs took the rest."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.run(variant, batch)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return min(wall, cpu) if self._device.type == "cpu" else wall

    def _random_batch(self, batch_size: int, sequence_length: int, *, max_length: int) -> list[TokenizedText]:
        shape = (batch_size, min(sequence_length, max_length))
        ids = np.random.default_rng(0).integers(0, self._tokenizer.vocab_size, shape)
        types = np.zeros_like(ids[0]) if self._tokenizer.uses_token_types else None
        return [TokenizedText(row, types, False) for row in ids]

    def _collate(self, texts: Sequence[TokenizedText], *, multiple: int = 1) -> dict[str, torch.Tensor]:
        """The batch, each tensor ``(texts, tokens)``, padded on the right to a multiple of tokens."""
        lengths = np.array([len(text.input_ids) for text in texts])
        longest = int(lengths.max())
        padded = max(longest, min(-(-longest // multiple) * multiple, self._model.max_input_length))
        mask = np.arange(padded) < lengths[:, None]
        batch = {"input_ids": _pad([text.input_ids for text in texts], mask, fill=self._tokenizer.pad_token_id)}
        batch["attention_mask"] = mask.astype(np.int64)
        if self._tokenizer.uses_token_types:
            types = [text.token_type_ids for text in texts if text.token_type_ids is not None]
            batch["token_type_ids"] = _pad(types, mask, fill=self._tokenizer.pad_token_type_id)
        return {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}


class _StaticCost:
    """Temperature and costs of a variant that runs the same sub-network for every text."""

    def __init__(self, plan: ExecutionPlan, subnet: Subnet, cost: CostModel, *, num_layers: int) -> None:
        (self.temperature,) = plan.temperatures.values()
        widths = {layer: float(plan.options[index].width) for layer, index in plan.static_options.items()}
        self.layers, self.widths = len(widths), tuple(widths.get(layer, 0.0) for layer in range(num_layers))
        self.flops = cache(partial(cost.flops, subnet))  # of a number of tokens


def _pad(sequences: Sequence[np.ndarray], mask: np.ndarray, *, fill: int) -> np.ndarray:
    values = np.full(mask.shape, fill, dtype=np.int64)
    values[mask] = np.concatenate(sequences)
    return values
