"""Context managers for inference: evaluation mode without gradients, and autocast."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from limbert.core.config import RuntimePrecision


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Dropout off and no gradients inside the ``with`` block; the previous mode is restored."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def autocast(device: torch.device, precision: RuntimePrecision) -> AbstractContextManager[object]:
    """Autocast to bfloat16 for ``bf16``; no autocast for ``fp32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
