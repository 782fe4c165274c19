"""Runs texts through the engines, one a size, all on the weights of one model. Owned by one thread."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from limbert.core.config import Precision, TaskKind
from limbert.inference.engine import Engine
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.serve.latency_model import Line
from limbert.serve.tokenizer import Encoded, Encoder
from limbert.serve.variants import Menu


@dataclass(frozen=True, slots=True)
class Row:
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
    size: str
    tokens: int
    truncated: bool
    flops: int
    layers: int
    widths: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in seconds, of the request's slowest text."""

    tokenisation: float
    queue: float
    inference: float


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to a request, in the order of its texts."""

    rows: tuple[Row, ...]
    timing: Timing


_SMALL, _LARGE = (1, 16), (8, 32)  # (texts, tokens) that are measured at the start
_ROUNDS = 4


class Runner:
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
        self, model: ElasticModel, menu: Menu, encoder: Encoder, *, kind: TaskKind, precision: Precision
    ) -> None:
        self._encoder, self._cost = encoder, CostModel(model)
        self._device, self._model = model.network.device, model
        self._engines = {size.name: Engine(model, size.policy, kind=kind, precision=precision) for size in menu.sizes}
        self._static = {
            size.name: _Static(self._engines[size.name], model, size.policy.subnet)
            for size in menu.sizes
            if size.policy.subnet is not None
        }
        self._nominal = {size.name: size.flops for size in menu.sizes}
        self._flops: dict[tuple[str, int], int] = {}  # by sub-network and tokens

    def run(self, size: str, texts: Sequence[Encoded]) -> list[Row]:
        """Answer a batch, in order, each text as it would be answered alone."""
        answer = self._engines[size].run(self._padded(texts))
        logits = answer.logits.tolist()  # waits for the device
        static = self._static.get(size)
        if static is not None:
            return [
                Row(
                    tuple(row), size, len(text.ids), text.truncated, self._flops_of(static.subnet, len(text.ids)),
                    static.layers, static.widths,
                )
                for row, text in zip(logits, texts, strict=True)
            ]  # fmt: skip
        trace = answer.trace
        spent = zip(trace.flops.tolist(), trace.layers_run.tolist(), trace.widths.tolist(), strict=True)
        return [
            Row(tuple(row), size, len(text.ids), text.truncated, int(flops), layers, tuple(widths))
            for row, text, (flops, layers, widths) in zip(logits, texts, spent, strict=True)
        ]

    def calibrate(self, *, max_tokens: int, seconds: float) -> dict[str, Line]:
        """Measure how long batches take at each size.

        The sizes take turns, and the quickest round counts: whatever else the machine does meanwhile shows in the
        speeds that are followed later. Where the time does not suffice, FLOPs say the rest.

        Args:
            max_tokens: longest input.
            seconds: for all of it; the largest size is measured in any case.
        """
        end = time.perf_counter() + seconds
        batches = [self._example(*shape, max_tokens=max_tokens) for shape in (_SMALL, _LARGE)]
        best: dict[str, list[float]] = {}
        for _ in range(_ROUNDS):
            for size in self._engines:
                if best and time.perf_counter() > end:
                    break
                taken = [self._seconds(size, batch) for batch in batches]
                best[size] = [min(pair) for pair in zip(best.get(size, taken), taken, strict=True)]
        few, many = (sum(len(text.ids) for text in batch) for batch in batches)
        lines = {size: Line.through((few, short), (many, long)) for size, (short, long) in best.items()}
        known, line = next(iter(lines.items()))
        for size in self._engines.keys() - lines.keys():
            share = self._nominal[size] / self._nominal[known]
            lines[size] = Line(line.fixed, line.per_token * share)
        return lines

    def _seconds(self, size: str, batch: Sequence[Encoded]) -> float:
        start = time.perf_counter()
        self.run(size, batch)
        return time.perf_counter() - start

    def _example(self, texts: int, tokens: int, *, max_tokens: int) -> list[Encoded]:
        """A batch of random tokens, which runs as long as a real one."""
        shape = (texts, min(tokens, max_tokens))
        ids = np.random.default_rng(0).integers(0, self._model.network.config.vocab_size, shape)
        return [Encoded(row, np.zeros_like(row) if self._encoder.typed else None, False) for row in ids]

    def _padded(self, texts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """The batch ``(texts, tokens)``, padded on the right to its longest."""
        lengths = np.array([len(text.ids) for text in texts])
        mask = np.arange(lengths.max()) < lengths[:, None]
        batch = {"input_ids": _laid([text.ids for text in texts], mask, fill=self._encoder.pad_id)}
        batch["attention_mask"] = mask.astype(np.int64)
        if self._encoder.typed:
            types = [text.types for text in texts if text.types is not None]
            batch["token_type_ids"] = _laid(types, mask, fill=self._encoder.pad_type)
        return {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}

    def _flops_of(self, subnet: str, tokens: int) -> int:
        key = (subnet, tokens)
        if key not in self._flops:
            self._flops[key] = self._cost.flops(self._model.subnet(subnet), tokens)
        return self._flops[key]


class _Static:
    """What runs at a static size, the same for every text: a sub-network, or an operating point that is one."""

    def __init__(self, engine: Engine, model: ElasticModel, subnet: str) -> None:
        self.subnet = subnet
        plan = engine.plan
        self.layers = len(plan.layers)
        self.widths = tuple(
            float(plan.options[plan.fixed[layer]].width) if layer in plan.fixed else 0.0
            for layer in range(model.shape.layers)
        )


def _laid(rows: Sequence[np.ndarray], mask: np.ndarray, *, fill: int) -> np.ndarray:
    """The rows laid where the mask is true, ``fill`` elsewhere."""
    values = np.full(mask.shape, fill, dtype=np.int64)
    values[mask] = np.concatenate(rows)
    return values
