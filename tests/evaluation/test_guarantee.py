"""Guaranteed drops: p-values are valid for every share of changes, and a limit is rarely exceeded over many draws."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import multinomial

from limbert.evaluation.guarantee import drop_p_value, examples_needed, last_passing


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_small_p_values_are_rare(share: float) -> None:
    """All outcomes of 30 examples whose drop is exactly the limit."""
    count, limit, level = 30, 0.1, 0.1
    chances = [(share + limit) / 2, (share - limit) / 2, 1 - share]
    outcomes = [(lost, gained) for lost, gained in product(range(count + 1), repeat=2) if lost + gained <= count]
    rejected = sum(
        multinomial.pmf([lost, gained, count - lost - gained], count, chances)
        for lost, gained in outcomes
        if (lost - gained) / count < limit and drop_p_value(lost, gained, count, max_drop=limit) <= level
    )
    assert 0 < rejected <= level


def test_better_candidates_have_lower_p_values() -> None:
    values = [drop_p_value(lost, 10, 1000, max_drop=0.01) for lost in (5, 10, 15, 25)]
    assert values == sorted(values)
    assert values[0] < 0.01
    assert values[-1] > 0.5


def test_examples_needed_are_just_enough() -> None:
    needed = examples_needed(max_drop=0.02, confidence=0.9)
    assert drop_p_value(0, 0, needed, max_drop=0.02) <= 0.1 < drop_p_value(0, 0, needed - 1, max_drop=0.02)


def test_sequence_ends_at_the_first_failure() -> None:
    full = np.ones(400, dtype=bool)
    worse = np.arange(400) >= 40
    assert last_passing(full, [full, full, worse, full], max_drop=0.02, confidence=0.9) == 1
    assert last_passing(full, [worse, full], max_drop=0.02, confidence=0.9) is None


def test_limit_is_rarely_exceeded() -> None:
    """200 draws of examples; ten candidates, each a little worse than the one before."""
    rng, limit, confidence = np.random.default_rng(0), 0.03, 0.9
    drops = np.linspace(0, 0.06, 10)
    exceeded, used = 0, 0
    for _ in range(200):
        hardness = rng.random(800)  # what one candidate gets wrong, all worse ones do
        flips = rng.random((10, 800)) < 0.005
        full = rng.random(800) < 0.9
        candidates = [(full & (hardness >= drop)) ^ flip for drop, flip in zip(drops / 0.9, flips, strict=True)]
        passed = last_passing(full, candidates, max_drop=limit, confidence=confidence)
        used += passed or 0
        accuracy = 0.9 - drops[passed or 0]
        exceeded += passed is not None and 0.9 - (0.995 * accuracy + 0.005 * (1 - accuracy)) > limit
    assert exceeded <= 20
    assert used > 200
