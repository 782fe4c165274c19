"""The scheduler under a simulated clock: what it promises, at every rate, and how it goes down and up with the load."""

import random
from dataclasses import replace

import pytest
from tests.factories.load_simulation import LADDER, LINES, RULES, arrivals, make, simulate

from limbert.serve.scheduler import SchedulingRequest

CHEAPEST = LADDER[-1]


def planned(request: SchedulingRequest) -> float:
    assert request.deadline is not None
    return request.arrival + RULES.planned_fraction * (request.deadline - request.arrival)


@pytest.mark.parametrize("rate", [20, 150, 300, 600, 1200, 3000])
@pytest.mark.parametrize("texts", [1, 5])
def test_nobody_who_was_accepted_is_answered_late(rate: int, texts: int) -> None:
    requests = arrivals(rate / texts, seconds=3, texts=texts)
    outcome = simulate(make(), requests)
    for one in requests:
        assert (one.id in outcome.refused) != (one.id in outcome.finished)
        if one.id in outcome.finished:
            assert outcome.finished[one.id] <= planned(one) + 1e-9
    assert not outcome.expired


def test_mixed_wishes_are_all_kept() -> None:
    kinds = [
        arrivals(200, seconds=3, seed=1),
        arrivals(20, seconds=3, seed=2, budget=0.02, first=10_000),
        arrivals(20, seconds=3, seed=3, budget=1.0, sizes=("1x1",), first=20_000),
        arrivals(50, seconds=3, seed=4, sizes=LADDER[:2], first=30_000),
        arrivals(20, seconds=3, seed=5, budget=None, sizes=("0.5x0.5",), first=40_000, texts=3),
    ]
    requests = [one for kind in kinds for one in kind]
    outcome = simulate(make(), requests)
    by_id = {one.id: one for one in requests}
    assert all({*sizes} <= {*by_id[one].variants} for one, sizes in outcome.sizes.items())
    for one, finished in outcome.finished.items():
        assert by_id[one].deadline is None or finished <= planned(by_id[one]) + 1e-9
    assert len(outcome.finished) + len(outcome.refused) == len(requests)
    for kind in kinds:
        assert sum(one.id in outcome.finished for one in kind) > len(kind) / 2


def test_what_can_be_met_is_not_refused() -> None:
    capacity = 1 / LINES[CHEAPEST].seconds(34)  # one by one: batches do better
    outcome = simulate(make(), arrivals(0.9 * capacity, seconds=5))
    assert not outcome.refused


def test_what_cannot_be_met_is_refused_at_once() -> None:
    scheduler = make()
    need = LINES[CHEAPEST].seconds(40)
    refusal = scheduler.admit(SchedulingRequest(1, (40,), LADDER, 0.0, 0.9 * need / RULES.planned_fraction), 0.0)
    assert refusal is not None
    assert "even if nothing else" in refusal.reason
    assert scheduler.queued == 0
    assert scheduler.admit(SchedulingRequest(2, (40,), LADDER, 0.0, 1.01 * need / RULES.planned_fraction), 0.0) is None


def test_under_overload_the_rest_is_answered_by_the_cheapest_at_full_throughput() -> None:
    requests = arrivals(4000, seconds=4)
    outcome = simulate(make(), requests)
    assert outcome.answered_by(CHEAPEST, since=1.0) > 0.98
    late = [batch for when, batch in outcome.batches if 1.0 <= when < 4.0]
    assert sum(batch.seconds for batch in late) > 0.98 * 3.0  # never idle
    tokens = sum(requests[one].lengths[place] for batch in late for one, place in batch.texts)
    assert tokens * LINES[CHEAPEST].per_token > 0.75 * 3.0  # little padding, few batches
    assert all(refusal.retry_after > 0 for refusal in outcome.refused.values())


def test_first_come_first_served_among_equals() -> None:
    requests = arrivals(500, seconds=2, seed=None)
    outcome = simulate(make(rules=replace(RULES, adaptive=False)), requests)
    begun = [outcome.begun[one.id] for one in requests if one.id in outcome.begun]
    assert begun == sorted(begun)


def test_nobody_starves() -> None:
    """A long text among many short ones, with a far deadline, and one without any."""
    short = arrivals(900, seconds=4, seed=7)
    odd = [SchedulingRequest(90_000, (400,), LADDER, 0.5, 1.5), SchedulingRequest(90_001, (400,), ("1x1",), 0.5, None)]
    outcome = simulate(make(), short + odd)
    assert outcome.finished[90_000] <= 1.5
    assert outcome.finished[90_001] <= 0.5 + 3 * RULES.slo


@pytest.mark.parametrize("adaptive", [True, False])
def test_batches_keep_to_the_token_budget(adaptive: bool) -> None:
    rules = replace(RULES, max_batch_tokens=128, adaptive=adaptive)
    requests = arrivals(800, seconds=0.5, budget=RULES.slo if adaptive else None)
    requests.append(SchedulingRequest(99_999, (300,), LADDER, 0.2, 1.0))
    outcome = simulate(make(rules=rules), requests)
    lengths = {one.id: one.lengths for one in requests}
    for _, batch in outcome.batches:
        real = [lengths[one][place] for one, place in batch.texts]
        assert batch.tokens == len(real) * max(real)
        assert batch.tokens <= 128 or len(real) == 1
    assert max(len(batch.texts) for _, batch in outcome.batches) > 3


def test_padding_never_costs_more_than_a_batch_of_its_own() -> None:
    rules = replace(RULES, max_batch_tokens=10**6, adaptive=False)
    draw = random.Random(3)
    requests = [SchedulingRequest(one, (draw.choice((5, 120)),), ("1x1",), 0.0, None) for one in range(60)]
    outcome = simulate(make(("1x1",), rules), requests)
    alone = sum(LINES["1x1"].seconds(one.lengths[0]) for one in requests)
    assert sum(batch.seconds for _, batch in outcome.batches) < alone - 50 * LINES["1x1"].fixed
    assert all(len({requests[one].lengths for one, _ in batch.texts}) == 1 for _, batch in outcome.batches)


def test_a_light_load_gets_the_best_size() -> None:
    outcome = simulate(make(), arrivals(40, seconds=5))
    assert outcome.answered_by("1x1") > 0.97


@pytest.mark.parametrize("rate", [130, 160, 180, 220, 300, 600])
@pytest.mark.parametrize("seed", [None, 5])
def test_a_constant_load_does_not_flap(rate: int, seed: int | None) -> None:
    scheduler = make()
    simulate(scheduler, arrivals(rate, seconds=30, seed=seed))
    assert scheduler.level_changes <= (3 if seed is None else 5)  # in half a minute, the first descent included


def test_a_step_of_load_down_and_up_again() -> None:
    requests = [
        *arrivals(50, seconds=5, seed=1),
        *arrivals(600, seconds=5, seed=2, start=5.0, first=10_000),
        *arrivals(50, seconds=15, seed=3, start=10.0, first=20_000),
    ]
    outcome = simulate(make(), requests)
    assert not outcome.refused
    level = dict(outcome.levels)
    assert {size for when, size in level.items() if when < 5.0} == {"1x1"}
    first_down = min(when for when, size in level.items() if size != "1x1")
    assert 5.0 < first_down < 6.0
    assert {size for when, size in level.items() if 7.0 < when < 10.0} <= {*LADDER[2:]}
    assert {size for when, size in level.items() if when > 20.0} == {"1x1"}
    assert outcome.answered_by("1x1", since=20.0) > 0.97
    steps = [size for _, size in sorted(level.items()) if _ > 10.0]
    ranks = [LADDER.index(size) for size in steps]
    assert ranks == sorted(ranks, reverse=True)  # up one after the other, never back down


def test_a_burst_dips_without_moving_the_level() -> None:
    scheduler = make()
    burst = [SchedulingRequest(1000 + one, (25,), LADDER, 2.0, 2.1) for one in range(30)]
    outcome = simulate(scheduler, arrivals(20, seconds=4) + burst)
    assert not outcome.refused
    assert outcome.answered_by("1x1", since=2.6) == 1.0
    assert any(batch.variant != "1x1" for when, batch in outcome.batches if 2.0 <= when < 2.1)


def test_quality_is_never_below_the_wish() -> None:
    best = LADDER[:2]
    requests = arrivals(1000, seconds=2) + arrivals(100, seconds=2, sizes=best, first=50_000, seed=9)
    outcome = simulate(make(), requests)
    assert all({*sizes} <= {*best} for one, sizes in outcome.sizes.items() if one >= 50_000)
    assert any(one >= 50_000 for one in outcome.sizes)


def test_the_queue_has_an_end() -> None:
    scheduler = make(("1x1",), replace(RULES, max_queue=10, adaptive=False))
    assert scheduler.admit(SchedulingRequest(100, (20,), ("1x1",), 0.0, None), 0.0) is None
    assert scheduler.next_batch(0.0) is not None
    verdicts = [scheduler.admit(SchedulingRequest(one, (20,), ("1x1",), 0.0, None), 0.0) for one in range(12)]
    assert verdicts[:10] == [None] * 10
    assert verdicts[10] is not None
    assert verdicts[10].retry_after == pytest.approx(11 * LINES["1x1"].seconds(20))  # at the pace of what is running
    assert scheduler.queued == 10
    scheduler.cancel(0)
    assert (
        scheduler.admit(SchedulingRequest(20, (20, 20), ("1x1",), 0.0, None), 0.0) is not None
    )  # all of it or nothing


def test_cancelled_requests_cost_nothing() -> None:
    scheduler = make(("1x1",), replace(RULES, adaptive=False))
    crowd = [SchedulingRequest(one, (60,), ("1x1",), 0.0, 0.1) for one in range(20)]
    taken = [one.id for one in crowd if scheduler.admit(one, 0.0) is None]
    assert 4 < len(taken) < 10
    last = SchedulingRequest(100, (60,), ("1x1",), 0.0, 0.1)
    assert scheduler.admit(last, 0.0) is not None
    for one in taken[:2]:
        assert scheduler.cancel(one) == 1
    assert scheduler.cancel(12345) == 0
    assert scheduler.admit(last, 0.0) is None
    ran: set[int] = set()
    now = 0.0
    while (batch := scheduler.next_batch(now)) is not None:
        ran |= {one for one, _ in batch.texts}
        now += batch.seconds
        scheduler.complete_batch()
    assert ran == {*taken[2:], last.id}


def test_a_hiccup_refuses_what_is_too_late_and_answers_the_rest() -> None:
    requests = arrivals(300, seconds=3)
    outcome = simulate(make(), requests, slower=3.0)  # three times as slow as the scheduler believes
    assert outcome.expired
    by_id = {one.id: one for one in requests}
    for one in outcome.expired:
        assert one not in outcome.finished
    for one, begun in outcome.begun.items():  # nothing begins that even the plan sees coming too late
        deadline = by_id[one].deadline
        assert deadline is not None
        assert begun + LINES[CHEAPEST].seconds(by_id[one].lengths[0]) <= deadline + 1e-9


def test_a_fixed_policy_refuses_only_for_a_full_queue_or_a_budget() -> None:
    scheduler = make(("1x1",), replace(RULES, adaptive=False))
    for one in range(200):
        assert scheduler.admit(SchedulingRequest(one, (50,), ("1x1",), 0.0, None), 0.0) is None
    refusal = scheduler.admit(SchedulingRequest(500, (50,), ("1x1",), 0.0, 0.5), 0.0)  # due after them
    assert refusal is not None
    assert refusal.retry_after > 1.0
    assert scheduler.admit(SchedulingRequest(501, (50,), ("1x1",), 0.0, 5.0), 0.0) is None
    assert scheduler.admit(SchedulingRequest(502, (50,), ("1x1",), 0.0, 0.05), 0.0) is None  # due before them
    assert scheduler.admit(SchedulingRequest(503, (50,), ("1x1",), 0.0, 0.012), 0.0) is not None
