"""How long things take on this machine, measured side by side so that a noisy machine is noisy for all."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

MIN_ROUNDS = 5
_WARMUP_ROUNDS = 3  # rounds that are not counted


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Seconds of each call; the runs take turns within a round, and three rounds of warm-up are not counted.

    Args:
        runs: by name; each returns when its work is done.
        rounds: counted calls of each.
        seconds: for all counted rounds together: fewer are made where the last round of the warm-up says that they
            would take longer, but at least 5.
        progress: called with rounds done and in all.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    turn = -_WARMUP_ROUNDS
    while turn < rounds:
        begin = time.perf_counter()
        for name, run in functions.items():
            start = time.perf_counter()
            run()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
        if turn == -1 and max_seconds is not None:
            rounds = max(min(rounds, MIN_ROUNDS), min(rounds, int(max_seconds / (time.perf_counter() - begin))))
        turn += 1
        progress(turn + _WARMUP_ROUNDS, rounds + _WARMUP_ROUNDS)
    return times


@torch.inference_mode()
def median_latency(
    networks: Mapping[str, nn.Module],
    inputs: dict[str, Tensor],
    *,
    rounds: int = 20,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Median seconds of one forward pass of each network on the same inputs, the networks taking turns.

    Args:
        networks: by name, in evaluation mode.
        inputs: on the networks' device.
        rounds: counted passes of each network.
        progress: called with rounds done and in all.
    """

    def runner(network: nn.Module) -> Callable[[], object]:
        def run() -> None:
            network(**inputs)
            if inputs["input_ids"].is_cuda:
                torch.cuda.synchronize()

        return run

    runs = {name: runner(network) for name, network in networks.items()}
    times = time_interleaved(runs, rounds=rounds, progress=progress)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
