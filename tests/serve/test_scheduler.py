"""The scheduler under a simulated clock: deadlines, refusals, batches and quality levels at every load."""

import random
from dataclasses import replace
from math import inf

import pytest
from tests.factories.load_simulation import CONFIG, LATENCY_MODELS, VARIANTS, arrivals, make_scheduler, simulate

from limbert.serve.batching import PendingRequest

CHEAPEST = VARIANTS[-1]
STATIC = replace(CONFIG, adaptive=False)


def planned_deadline(request: PendingRequest) -> float:
    return request.arrival + CONFIG.planned_fraction * (request.deadline - request.arrival)


@pytest.mark.parametrize("rate", [20, 150, 300, 600, 1200, 3000])
@pytest.mark.parametrize("texts", [1, 5])
def test_accepted_requests_meet_their_deadline(rate: int, texts: int) -> None:
    requests = arrivals(rate / texts, seconds=3, texts=texts)
    outcome = simulate(make_scheduler(), requests)
    for request in requests:
        assert (request in outcome.refused) != (request in outcome.finished)
        if request in outcome.finished:
            assert outcome.finished[request] <= planned_deadline(request) + 1e-9
    assert not outcome.expired


def test_mixed_options_are_all_met() -> None:
    groups = [
        arrivals(200, seconds=3, seed=1),
        arrivals(20, seconds=3, seed=2, budget=0.02),
        arrivals(20, seconds=3, seed=3, budget=1.0, variants=("1x1",)),
        arrivals(50, seconds=3, seed=4, variants=VARIANTS[:2]),
        arrivals(20, seconds=3, seed=5, budget=inf, variants=("0.5x0.5",), texts=3),
    ]
    requests = [request for group in groups for request in group]
    outcome = simulate(make_scheduler(), requests)
    assert all(variants <= {*request.variants} for request, variants in outcome.variants.items())
    for request, finished in outcome.finished.items():
        assert finished <= planned_deadline(request) + 1e-9
    assert len(outcome.finished) + len(outcome.refused) == len(requests)
    for group in groups:
        assert sum(request in outcome.finished for request in group) > len(group) / 2


def test_feasible_load_is_never_refused() -> None:
    capacity = 1 / LATENCY_MODELS[CHEAPEST].seconds(34)  # without batching
    assert not simulate(make_scheduler(), arrivals(0.9 * capacity, seconds=5)).refused


def test_infeasible_deadline_is_refused_at_once() -> None:
    scheduler = make_scheduler()
    seconds = LATENCY_MODELS[CHEAPEST].seconds(40)
    refusal = scheduler.admit(PendingRequest((40,), VARIANTS, 0.0, 0.9 * seconds / CONFIG.planned_fraction), 0.0)
    assert refusal is not None
    assert "idle server" in refusal.reason
    assert scheduler.queued == 0
    feasible = PendingRequest((40,), VARIANTS, 0.0, 1.01 * seconds / CONFIG.planned_fraction)
    assert scheduler.admit(feasible, 0.0) is None


def test_overload_runs_the_cheapest_at_full_throughput() -> None:
    outcome = simulate(make_scheduler(), arrivals(4000, seconds=4))
    assert outcome.fraction(CHEAPEST, since=1.0) > 0.98
    late = [batch for start, batch in outcome.batches if 1.0 <= start < 4.0]
    assert sum(batch.seconds for batch in late) > 0.98 * 3.0  # never idle
    tokens = sum(text.tokens for batch in late for text in batch.texts)
    assert tokens * LATENCY_MODELS[CHEAPEST].per_token > 0.75 * 3.0  # little padding, few batches
    assert all(refusal.retry_after > 0 for refusal in outcome.refused.values())


def test_equal_requests_run_in_order_of_arrival() -> None:
    requests = arrivals(500, seconds=2, seed=None)
    outcome = simulate(make_scheduler(config=STATIC), requests)
    started = [outcome.started[request] for request in requests if request in outcome.started]
    assert started == sorted(started)


def test_long_texts_do_not_starve() -> None:
    with_deadline = PendingRequest((400,), VARIANTS, 0.5, 1.5)
    without = PendingRequest((400,), ("1x1",), 0.5)
    outcome = simulate(make_scheduler(), [*arrivals(900, seconds=4, seed=7), with_deadline, without])
    assert outcome.finished[with_deadline] <= 1.5
    assert outcome.finished[without] <= 0.5 + 3 * CONFIG.slo


@pytest.mark.parametrize("adaptive", [True, False])
def test_batches_keep_the_token_limit(adaptive: bool) -> None:
    config = replace(CONFIG, max_batch_tokens=128, adaptive=adaptive)
    requests = arrivals(800, seconds=0.5, budget=CONFIG.slo if adaptive else inf)
    requests.append(PendingRequest((300,), VARIANTS, 0.2, 1.0))
    outcome = simulate(make_scheduler(config=config), requests)
    for _, batch in outcome.batches:
        lengths = [text.tokens for text in batch.texts]
        assert batch.tokens == len(lengths) * max(lengths)
        assert batch.tokens <= 128 or len(lengths) == 1
    assert max(len(batch.texts) for _, batch in outcome.batches) > 3


def test_padding_costs_less_than_another_batch() -> None:
    config = replace(STATIC, max_batch_tokens=10**6)
    generator = random.Random(3)
    requests = [PendingRequest((generator.choice((5, 120)),), ("1x1",), 0.0) for _ in range(60)]
    outcome = simulate(make_scheduler(("1x1",), config), requests)
    model = LATENCY_MODELS["1x1"]
    one_by_one = sum(model.seconds(request.lengths[0]) for request in requests)
    assert sum(batch.seconds for _, batch in outcome.batches) < one_by_one - 50 * model.fixed
    assert all(len({text.tokens for text in batch.texts}) == 1 for _, batch in outcome.batches)


def test_light_load_runs_the_best_variant() -> None:
    assert simulate(make_scheduler(), arrivals(40, seconds=5)).fraction("1x1") > 0.97


@pytest.mark.parametrize("rate", [130, 160, 180, 220, 300, 600])
@pytest.mark.parametrize("seed", [None, 5])
def test_constant_load_does_not_oscillate(rate: int, seed: int | None) -> None:
    scheduler = make_scheduler()
    simulate(scheduler, arrivals(rate, seconds=30, seed=seed))
    assert scheduler.level_changes <= (3 if seed is None else 5)


def test_level_follows_a_step_of_load() -> None:
    requests = [
        *arrivals(50, seconds=5, seed=1),
        *arrivals(600, seconds=5, seed=2, start=5.0),
        *arrivals(50, seconds=15, seed=3, start=10.0),
    ]
    outcome = simulate(make_scheduler(), requests)
    assert not outcome.refused
    levels = outcome.levels
    assert {variant for now, variant in levels if now < 5.0} == {"1x1"}
    assert 5.0 < min(now for now, variant in levels if variant != "1x1") < 6.0
    assert {variant for now, variant in levels if 7.0 < now < 10.0} <= {*VARIANTS[2:]}
    assert {variant for now, variant in levels if now > 20.0} == {"1x1"}
    assert outcome.fraction("1x1", since=20.0) > 0.97
    ranks = [VARIANTS.index(variant) for now, variant in levels if now > 10.0]
    assert ranks == sorted(ranks, reverse=True)  # up one by one, never down again


def test_burst_downgrades_batches_not_the_level() -> None:
    burst = [PendingRequest((25,), VARIANTS, 2.0, 2.1) for _ in range(30)]
    outcome = simulate(make_scheduler(), arrivals(20, seconds=4) + burst)
    assert not outcome.refused
    assert outcome.fraction("1x1", since=2.6) == 1.0
    assert any(batch.variant != "1x1" for start, batch in outcome.batches if 2.0 <= start < 2.1)


def test_variants_stay_within_those_allowed() -> None:
    restricted = arrivals(100, seconds=2, variants=VARIANTS[:2], seed=9)
    outcome = simulate(make_scheduler(), arrivals(1000, seconds=2) + restricted)
    assert all(outcome.variants.get(request, set()) <= {*VARIANTS[:2]} for request in restricted)
    assert any(request in outcome.variants for request in restricted)


def test_queue_is_limited() -> None:
    scheduler = make_scheduler(("1x1",), replace(STATIC, max_queue=10))
    assert scheduler.admit(PendingRequest((20,), ("1x1",), 0.0), 0.0) is None
    assert scheduler.next_batch(0.0) is not None
    requests = [PendingRequest((20,), ("1x1",), 0.0) for _ in range(12)]
    refusals = [scheduler.admit(request, 0.0) for request in requests]
    assert refusals[:10] == [None] * 10
    assert refusals[10] is not None
    assert refusals[10].retry_after == pytest.approx(11 * LATENCY_MODELS["1x1"].seconds(20))  # at the present pace
    assert scheduler.queued == 10
    scheduler.cancel(requests[0])
    assert scheduler.admit(PendingRequest((20, 20), ("1x1",), 0.0), 0.0) is not None  # all of its texts or none


def test_cancelled_requests_free_the_queue() -> None:
    scheduler = make_scheduler(("1x1",), STATIC)
    requests = [PendingRequest((60,), ("1x1",), 0.0, 0.1) for _ in range(20)]
    accepted = [request for request in requests if scheduler.admit(request, 0.0) is None]
    assert 4 < len(accepted) < 10
    last = PendingRequest((60,), ("1x1",), 0.0, 0.1)
    assert scheduler.admit(last, 0.0) is not None
    for request in accepted[:2]:
        assert scheduler.cancel(request) == 1
    assert scheduler.cancel(PendingRequest((1,), ("1x1",), 0.0)) == 0
    assert scheduler.admit(last, 0.0) is None
    ran: set[PendingRequest] = set()
    now = 0.0
    while (batch := scheduler.next_batch(now)) is not None:
        ran |= {text.request for text in batch.texts}
        now += batch.seconds
        scheduler.complete_batch()
    assert ran == {*accepted[2:], last}


def test_slow_batches_expire_late_requests_only() -> None:
    outcome = simulate(make_scheduler(), arrivals(300, seconds=3), slowdown=3.0)
    assert outcome.expired
    assert not {*outcome.expired} & {*outcome.finished}
    for request, started in outcome.started.items():
        assert started + LATENCY_MODELS[CHEAPEST].seconds(request.lengths[0]) <= request.deadline + 1e-9


def test_static_policy_refuses_for_deadlines_only() -> None:
    scheduler = make_scheduler(("1x1",), STATIC)
    for _ in range(200):
        assert scheduler.admit(PendingRequest((50,), ("1x1",), 0.0), 0.0) is None
    refusal = scheduler.admit(PendingRequest((50,), ("1x1",), 0.0, 0.5), 0.0)  # planned after the others
    assert refusal is not None
    assert refusal.retry_after > 1.0
    assert scheduler.admit(PendingRequest((50,), ("1x1",), 0.0, 5.0), 0.0) is None
    assert scheduler.admit(PendingRequest((50,), ("1x1",), 0.0, 0.05), 0.0) is None  # planned before the others
    assert scheduler.admit(PendingRequest((50,), ("1x1",), 0.0, 0.012), 0.0) is not None
