"""Runs batches of tokenised texts at any variant of one model, and measures their latency. Used by one thread."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch

from limbert.core.config import TaskType
from limbert.inference.engine import Engine
from limbert.inference.runtimes import Runtime
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.serve.latency_model import LatencyModel
from limbert.serve.tokenizer import FastTokenizer, TokenizedText
from limbert.serve.variants import ModelVariants

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
    """An engine for each variant, all on the weights of one model in evaluation mode; the tokenizer says how to pad.

    ``runtimes`` holds, by name, the networks of variants that are computed outside the engine.

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
        runtimes: Mapping[str, Runtime] = MappingProxyType({}),
    ) -> None:
        self._tokenizer, self._cost = tokenizer, CostModel(model)
        self._device, self._model = model.network.device, model
        self._runtimes = runtimes
        self._engines = {
            one.name: Engine(
                model, one.policy, task_type=task_type, precision="fp32" if one.name in runtimes else one.precision
            )
            for one in variants.variants
        }
        self._static_subnets = {  # layers and widths of the variants that run the same sub-network for every text
            variant.name: _static_layers(self._engines[variant.name], variant.policy.subnet, model.shape.layers)
            for variant in variants.variants
            if variant.policy.subnet is not None
        }
        self._nominal_flops = {variant.name: variant.flops for variant in variants.variants}
        self._flops: dict[tuple[str, int], int] = {}  # by sub-network and tokens

    def run(self, variant: str, texts: Sequence[TokenizedText]) -> list[TextOutput]:
        """The outputs of a batch, in order; each text gets what it gets alone."""
        engine, runtime = self._engines[variant], self._runtimes.get(variant)
        if runtime is None:
            output = engine.run(self._collate(texts))
            logits, trace = output.logits.tolist(), output.trace  # waits for the device
        else:
            (temperature,) = engine.plan.temperatures.values()
            outputs = runtime(self._collate(texts, multiple=runtime.token_multiple))
            logits, trace = (outputs / temperature).tolist(), None
        static = self._static_subnets.get(variant)
        if static is not None:
            subnet, layers, widths = static
            costs = [(self._subnet_flops(subnet, len(text.input_ids)), layers, widths) for text in texts]
        else:
            assert trace is not None
            columns = zip(trace.flops.tolist(), trace.layers_run.tolist(), trace.widths.tolist(), strict=True)
            costs = [(int(flops), layers, tuple(widths)) for flops, layers, widths in columns]
        return [
            TextOutput(tuple(row), variant, len(text.input_ids), text.truncated, *cost)
            for row, text, cost in zip(logits, texts, costs, strict=True)
        ]

    def check(self) -> None:
        """Run a small batch of the first variant: raises what the model or the device raises."""
        self.run(next(iter(self._engines)), self._random_batch(*_SMALL_BATCH, max_length=_SMALL_BATCH[1]))

    def calibrate(self, *, max_length: int, time_budget: float) -> dict[str, LatencyModel]:
        """Measure the latency of all variants within ``time_budget`` seconds, on inputs up to ``max_length`` tokens.

        Variants take turns and the fastest round counts, since slow ones are due to other programs. Variants that do
        not fit into the time get the latency of the first, scaled by their FLOPs.
        """
        end = time.perf_counter() + time_budget
        batches = [self._random_batch(*shape, max_length=max_length) for shape in (_SMALL_BATCH, _LARGE_BATCH)]
        best: dict[str, list[float]] = {}
        for _ in range(_CALIBRATION_ROUNDS):
            for variant in self._engines:
                if best and time.perf_counter() > end:
                    break
                measured = [self._measure(variant, batch) for batch in batches]
                best[variant] = [min(pair) for pair in zip(best.get(variant, measured), measured, strict=True)]
        few, many = (sum(len(text.input_ids) for text in batch) for batch in batches)
        models = {variant: LatencyModel.fit((few, short), (many, long)) for variant, (short, long) in best.items()}
        first, model = next(iter(models.items()))
        for variant in self._engines.keys() - models.keys():
            ratio = self._nominal_flops[variant] / self._nominal_flops[first]
            models[variant] = LatencyModel(model.fixed, model.per_token * ratio)
        multiples = {variant: runtime.token_multiple for variant, runtime in self._runtimes.items()}
        return {name: replace(model, token_multiple=multiples.get(name, 1)) for name, model in models.items()}

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

    def _subnet_flops(self, subnet: str, tokens: int) -> int:
        key = (subnet, tokens)
        if key not in self._flops:
            self._flops[key] = self._cost.flops(self._model.subnet(subnet), tokens)
        return self._flops[key]


def _static_layers(engine: Engine, subnet: str, num_layers: int) -> tuple[str, int, tuple[float, ...]]:
    plan = engine.plan
    widths = (
        float(plan.options[plan.static_options[layer]].width) if layer in plan.static_options else 0.0
        for layer in range(num_layers)
    )
    return subnet, len(plan.layers), tuple(widths)


def _pad(sequences: Sequence[np.ndarray], mask: np.ndarray, *, fill: int) -> np.ndarray:
    values = np.full(mask.shape, fill, dtype=np.int64)
    values[mask] = np.concatenate(sequences)
    return values
