"""Whether an exported model answers as its source does: the comparison that every export must pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbert.errors import ExportError
from limbert.inference.runtimes import Runtime

TOLERANCE = 1e-4  # of the largest output: other orders of summation differ by some 1e-6, errors by far more
_AT_TOKENS = ("start_logits", "end_logits")


@dataclass(frozen=True)
class Comparison:
    """How near an exported model is to its source.

    Attributes:
        examples: compared.
        difference: largest difference of two outputs, as a share of the largest output.
        agreement: share of the answers (the largest output along the last axis) that are the same.
    """

    examples: int
    difference: float
    agreement: float


def compare(source: Runtime, exported: Runtime, batches: Iterable[Mapping[str, Tensor]]) -> Comparison:
    """Run both on the same batches. What stands at padding is nobody's answer and is not compared.

    Raises:
        ExportError: if the outputs have other names or shapes, or one is not finite.
    """
    examples, largest, difference = 0, 0.0, 0.0
    same: list[Tensor] = []
    for batch in batches:
        expected, found = source.outputs(batch), exported.outputs(batch)
        if {*expected} - {*found}:
            raise ExportError(f"the exported model returns {', '.join(found)}; expected {', '.join(expected)}")
        examples += len(batch["input_ids"])
        for name, wanted in expected.items():
            got = found[name]
            if got.shape != wanted.shape:
                raise ExportError(f"{name} of the exported model is {tuple(got.shape)}; expected {tuple(wanted.shape)}")
            if name in _AT_TOKENS or wanted.ndim == 3:
                real = batch["attention_mask"].bool()
                wanted, got = wanted[real], got[real]
            if not bool(got.isfinite().all()):
                raise ExportError(f"{name} of the exported model holds values that are not finite")
            largest = max(largest, float(wanted.abs().max()))
            difference = max(difference, float((wanted - got).abs().max()))
            if wanted.ndim > 1:
                same.append((wanted.argmax(-1) == got.argmax(-1)).flatten())
    agreement = float(torch.cat(same).float().mean()) if same else 1.0
    return Comparison(examples, difference / max(largest, 1e-12), agreement)


def require_equal(comparison: Comparison) -> None:
    """Refuse an export that differs by more than rounding.

    Raises:
        ExportError: naming the difference.
    """
    if comparison.difference > TOLERANCE:
        raise ExportError(
            f"the exported model does not answer as its source: on {comparison.examples} examples outputs differ by up "
            f"to {comparison.difference:.2g} of the largest one; allowed: {TOLERANCE:g}; nothing was written"
        )
