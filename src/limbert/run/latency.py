"""How long networks take on this machine, measured side by side so that a noisy machine is noisy for all."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


@torch.inference_mode()
def median_latency(
    networks: Mapping[str, nn.Module],
    inputs: dict[str, Tensor],
    *,
    rounds: int = 20,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Median seconds of one forward pass of each network on the same inputs.

    Networks take turns within a round; three rounds of warm-up are not counted.

    Args:
        networks: by name, in evaluation mode.
        inputs: on the networks' device.
        rounds: counted passes of each network.
        progress: called with rounds done and in all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(-3, rounds):
        for name, network in networks.items():
            start = time.perf_counter()
            network(**inputs)
            if inputs["input_ids"].is_cuda:
                torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
        progress(turn + 4, rounds + 3)
    return {name: statistics.median(times) for name, times in seconds.items()}
