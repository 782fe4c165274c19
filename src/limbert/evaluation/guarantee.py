"""A drop in accuracy that is exceeded rarely: exact p-values for paired predictions, and tests in a fixed sequence.

Learn then test (Angelopoulos et al., arXiv 2110.01052): candidates and their order come from one part of the validation
examples. On the other part they are tested from the most expensive on, each at the full level, until the first that
fails. Then the chosen candidate's drop on new examples exceeds the limit in at most ``1 - confidence`` of all draws.
"""

from collections.abc import Iterable

import numpy as np

_EXCLUDED, _TAIL = 1e-3, 1e-6  # probabilities left out, and added to the p-value
_SHARES = 12  # values of the share of changed predictions that are tried


def drop_p_value(losses: int, gains: int, count: int, *, max_drop: float) -> float:
    """The p-value of the hypothesis that accuracy drops by at least ``max_drop``, exact for every number of examples.

    It is the probability of a z-score as high as the observed one. That depends on the share of changed predictions
    too, which takes its worst value within a confidence bound (Berger and Boos 1994).

    Args:
        losses: examples that only the full model predicts correctly.
        gains: examples that only the candidate predicts correctly.
        count: all examples.
        max_drop: a fraction above 0.
    """
    from scipy.stats import beta, binom

    observed = _z_score(np.array(losses), np.array(gains), count, max_drop)
    changed = losses + gains
    bound = 1.0 if changed == count else float(beta.ppf(1 - _EXCLUDED, changed + 1, count - changed))
    worst = 0.0
    for share in np.linspace(max_drop, max(bound, max_drop), _SHARES):
        few, many = binom.ppf(_TAIL / 2, count, share), binom.isf(_TAIL / 2, count, share)
        changes = np.arange(few, many + 1)[:, None]
        lost = np.arange(many + 1)[None, :]
        is_lost = (share + max_drop) / 2 / share
        probability = binom.pmf(changes, count, share) * binom.pmf(lost, changes, is_lost)
        as_high = _z_score(lost, changes - lost, count, max_drop) >= observed - 1e-9
        worst = max(worst, float(probability[as_high].sum()))
    return min(1.0, worst + _EXCLUDED + _TAIL)


def _z_score(losses: np.ndarray, gains: np.ndarray, count: int, max_drop: float) -> np.ndarray:
    """How far the observed drop is below ``max_drop``, in standard errors that it has if that is the true drop."""
    share_of_changes = np.maximum((losses + gains) / count, max_drop)
    score: np.ndarray = (max_drop - (losses - gains) / count) / np.sqrt(share_of_changes / count)
    return score


def examples_needed(*, max_drop: float, confidence: float) -> int:
    """The fewest test examples with which a candidate that changes no prediction passes."""

    def enough(count: int) -> bool:
        return drop_p_value(0, 0, count, max_drop=max_drop) <= 1 - confidence

    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def last_passing(
    full: np.ndarray, candidates: Iterable[np.ndarray], *, max_drop: float, confidence: float
) -> int | None:
    """The index of the last candidate before the first that fails, or None.

    Args:
        full: whether the full model is right, ``(examples,)``, boolean.
        candidates: the same of each candidate, in the order of the tests.
        max_drop: a fraction above 0.
        confidence: of the guarantee.
    """
    passed = None
    for index, right in enumerate(candidates):
        losses, gains = int((full & ~right).sum()), int((right & ~full).sum())
        if drop_p_value(losses, gains, len(full), max_drop=max_drop) > 1 - confidence:
            break
        passed = index
    return passed
