"""The comparison that every export must pass: it sees what is wrong and overlooks what stands at padding."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from limbert.errors import ExportError
from limbert.export.verify import compare_outputs, require_parity
from limbert.inference.runtimes import Runtime

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
BATCHES = [{"input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]), "attention_mask": MASK}]
LOGITS = torch.tensor([[1.0, -2.0], [0.5, 4.0]])


def answering(**outputs: Tensor) -> Runtime:
    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return outputs

    return Runtime(("input_ids", "attention_mask"), run)


def test_equal_outputs_pass_and_the_largest_difference_is_found() -> None:
    source = answering(logits=LOGITS)
    comparison = compare_outputs(source, answering(logits=LOGITS), BATCHES)
    assert (comparison.examples, comparison.max_relative_difference, comparison.agreement) == (2, 0.0, 1.0)
    require_parity(comparison)
    other = LOGITS.clone()
    other[1, 0] += 0.4
    comparison = compare_outputs(source, answering(logits=other), BATCHES)
    assert comparison.max_relative_difference == pytest.approx(0.1)
    with pytest.raises(ExportError, match=r"differ by up to 0\.1 of the largest one"):
        require_parity(comparison)
    assert compare_outputs(source, answering(logits=LOGITS.flip(1)), BATCHES).agreement == 0


@pytest.mark.parametrize(("name", "trailing"), [("logits", (2,)), ("start_logits", ())])
def test_padding_is_not_compared_and_real_tokens_are(name: str, trailing: tuple[int, ...]) -> None:
    outputs = torch.randn(2, 3, *trailing, generator=torch.Generator().manual_seed(1))
    other = outputs.clone()
    other[1, 2] += 5
    assert (
        compare_outputs(answering(**{name: outputs}), answering(**{name: other}), BATCHES).max_relative_difference == 0
    )
    other[1, 0] += 5
    assert (
        compare_outputs(answering(**{name: outputs}), answering(**{name: other}), BATCHES).max_relative_difference > 1
    )


def test_other_outputs_shapes_and_numbers_that_are_none_are_refused() -> None:
    source = answering(logits=LOGITS)
    with pytest.raises(ExportError, match="returns answers; expected logits"):
        compare_outputs(source, answering(answers=LOGITS), BATCHES)
    with pytest.raises(ExportError, match=r"logits of the exported model is \(2, 1\); expected \(2, 2\)"):
        compare_outputs(source, answering(logits=LOGITS[:, :1]), BATCHES)
    with pytest.raises(ExportError, match="not finite"):
        compare_outputs(source, answering(logits=LOGITS * float("nan")), BATCHES)
