"""Parity of runtimes: it finds differences at tokens and ignores those at padding."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from limbert.errors import ExportError
from limbert.inference.parity import compare_outputs, require_parity
from limbert.inference.runtimes import Runtime

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
BATCHES = [{"input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]), "attention_mask": MASK}]
LOGITS = torch.tensor([[1.0, -2.0], [0.5, 4.0]])


def runtime_with(**outputs: Tensor) -> Runtime:
    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return outputs

    return Runtime(("input_ids", "attention_mask"), run)


def test_largest_difference_is_found() -> None:
    source = runtime_with(logits=LOGITS)
    comparison = compare_outputs(source, runtime_with(logits=LOGITS), BATCHES)
    assert (comparison.examples, comparison.max_relative_difference, comparison.agreement) == (2, 0.0, 1.0)
    require_parity(comparison)
    other = LOGITS.clone()
    other[1, 0] += 0.4
    comparison = compare_outputs(source, runtime_with(logits=other), BATCHES)
    assert comparison.max_relative_difference == pytest.approx(0.1)
    with pytest.raises(ExportError, match=r"0\.1 of the largest"):
        require_parity(comparison)
    assert compare_outputs(source, runtime_with(logits=LOGITS.flip(1)), BATCHES).agreement == 0


@pytest.mark.parametrize(("name", "trailing"), [("logits", (2,)), ("start_logits", ())])
def test_padding_is_not_compared(name: str, trailing: tuple[int, ...]) -> None:
    outputs = torch.randn(2, 3, *trailing, generator=torch.Generator().manual_seed(1))
    other = outputs.clone()
    runtimes = runtime_with(**{name: outputs}), runtime_with(**{name: other})
    other[1, 2] += 5
    assert compare_outputs(*runtimes, BATCHES).max_relative_difference == 0
    other[1, 0] += 5
    assert compare_outputs(*runtimes, BATCHES).max_relative_difference > 1


def test_wrong_outputs_are_refused() -> None:
    source = runtime_with(logits=LOGITS)
    with pytest.raises(ExportError, match="expected logits"):
        compare_outputs(source, runtime_with(scores=LOGITS), BATCHES)
    with pytest.raises(ExportError, match=r"\(2, 1\)"):
        compare_outputs(source, runtime_with(logits=LOGITS[:, :1]), BATCHES)
    with pytest.raises(ExportError, match="not finite"):
        compare_outputs(source, runtime_with(logits=LOGITS * float("nan")), BATCHES)
