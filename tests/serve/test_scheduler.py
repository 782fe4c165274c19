"""The scheduler under a simulated clock: deadlines, refusals, batches and quality levels at every load."""

import random
from dataclasses import replace
from math import inf

import pytest
from scheduler import Outcome, simulate

from limbert.serve.batching import PendingRequest
from limbert.serve.latency_model import LatencyModel
from limbert.serve.scheduler import Scheduler, SchedulerConfig

LATENCY_MODELS = {
    "1x1": LatencyModel(1.0e-3, 2.0e-4),
    "0.5x1": LatencyModel(0.9e-3, 1.1e-4),
    "0.5x0.5": LatencyModel(0.6e-3, 5.5e-5),
    "0.25x0.5": LatencyModel(0.5e-3, 3.0e-5),
}
VARIANTS = tuple(LATENCY_MODELS)
CHEAPEST = VARIANTS[-1]
CONFIG = SchedulerConfig(slo=0.1, max_batch_tokens=512, max_queue=1000)


def make_scheduler(variants: tuple[str, ...] = VARIANTS, config: SchedulerConfig = CONFIG) -> Scheduler:
    """A scheduler with exact latency models."""
    return Scheduler(variants, LATENCY_MODELS.__getitem__, config)


def arrivals(
    rate: float,
    *,
    seconds: float,
    seed: int = 0,
    start: float = 0.0,
    budget: float = CONFIG.slo,
    variants: tuple[str, ...] = VARIANTS,
    texts: int = 1,
) -> list[PendingRequest]:
    """Requests of 8 to 60 tokens per text that arrive at random, with ``budget`` seconds to their deadline."""
    generator, now, requests = random.Random(seed), start, []
    while (now := now + generator.expovariate(rate)) < start + seconds:
        lengths = tuple(generator.randint(8, 60) for _ in range(texts))
        requests.append(PendingRequest(lengths, variants, now, now + budget))
    return requests


def lateness(outcome: Outcome) -> float:
    """Fraction of the accepted requests that missed their deadline."""
    late = sum(finished > request.deadline for request, finished in outcome.finished.items())
    return (late + len(outcome.expired)) / (len(outcome.finished) + len(outcome.expired))


@pytest.mark.parametrize("rate", [20, 150, 300, 600, 1200, 3000])
@pytest.mark.parametrize("texts", [1, 5])
def test_accepted_requests_meet_their_deadline(rate: int, texts: int) -> None:
    requests = arrivals(rate / texts, seconds=3, texts=texts)
    outcome = simulate(make_scheduler(), requests)
    assert all((request in outcome.refused) != (request in outcome.finished) for request in requests)
    assert lateness(outcome) <= 0.01
    assert lateness(outcome) == 0 or outcome.refused  # only in overload


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
    assert len(outcome.finished) + len(outcome.refused) == len(requests)
    assert lateness(outcome) <= 0.01
    for group in groups:
        assert sum(request in outcome.finished for request in group) > len(group) / 2


def test_feasible_load_is_never_refused() -> None:
    capacity = 1 / LATENCY_MODELS[CHEAPEST].seconds(34)  # without batching
    assert not simulate(make_scheduler(), arrivals(0.9 * capacity, seconds=5)).refused


def test_infeasible_deadline_is_refused_at_once() -> None:
    scheduler = make_scheduler()
    needed = LATENCY_MODELS[CHEAPEST].seconds(40) / CONFIG.admission_fraction
    refusal = scheduler.admit(PendingRequest((40,), VARIANTS, 0.0, 0.99 * needed), 0.0)
    assert refusal is not None
    assert "idle server" in refusal.reason
    assert scheduler.queued == 0
    assert scheduler.admit(PendingRequest((40,), VARIANTS, 0.0, 1.01 * needed), 0.0) is None


def test_overload_runs_the_cheapest_at_full_throughput() -> None:
    outcome = simulate(make_scheduler(), arrivals(4000, seconds=4))
    assert outcome.fraction(CHEAPEST, since=1.0) > 0.98
    late = [batch for start, batch in outcome.batches if 1.0 <= start < 4.0]
    assert sum(batch.seconds for batch in late) > 0.98 * 3.0  # never idle
    tokens = sum(text.tokens for batch in late for text in batch.texts)
    assert tokens * LATENCY_MODELS[CHEAPEST].per_token > 0.75 * 3.0  # little padding, few batches
    assert all(refusal.retry_after > 0 for refusal in outcome.refused.values())


def test_equal_requests_run_in_order_of_arrival() -> None:
    requests = [PendingRequest((25,), ("1x1",), step / 500) for step in range(1000)]
    outcome = simulate(make_scheduler(("1x1",)), requests)
    started = [outcome.started[request] for request in requests]
    assert started == sorted(started)


def test_long_texts_do_not_starve() -> None:
    with_deadline = PendingRequest((400,), VARIANTS, 0.5, 1.5)
    without = PendingRequest((400,), ("1x1",), 0.5)
    outcome = simulate(make_scheduler(), [*arrivals(900, seconds=4, seed=7), with_deadline, without])
    assert outcome.finished[with_deadline] <= 1.5
    assert outcome.finished[without] <= 0.5 + 3 * CONFIG.slo


@pytest.mark.parametrize("budget", [CONFIG.slo, inf])
def test_batches_keep_the_token_limit(budget: float) -> None:
    requests = [*arrivals(800, seconds=0.5, budget=budget), PendingRequest((300,), VARIANTS, 0.2, 1.0)]
    outcome = simulate(make_scheduler(config=replace(CONFIG, max_batch_tokens=128)), requests)
    for _, batch in outcome.batches:
        lengths = [text.tokens for text in batch.texts]
        assert batch.tokens == len(lengths) * max(lengths)
        assert batch.tokens <= 128 or len(lengths) == 1
    assert max(len(batch.texts) for _, batch in outcome.batches) > 3


def test_padding_costs_less_than_another_batch() -> None:
    generator = random.Random(3)
    requests = [PendingRequest((generator.choice((5, 120)),), ("1x1",), 0.0) for _ in range(60)]
    outcome = simulate(make_scheduler(("1x1",), replace(CONFIG, max_batch_tokens=10**6)), requests)
    assert len(outcome.batches) < 10
    assert all(len({text.tokens for text in batch.texts}) == 1 for _, batch in outcome.batches)


@pytest.mark.parametrize("connections", [1, 4, 8])
def test_mixed_lengths_cost_little_padding(connections: int) -> None:
    model, generator = LatencyModel(1.7e-3, 2.8e-5, token_multiple=8), random.Random(0)
    scheduler = Scheduler(("1x1",), lambda name: model, replace(CONFIG, max_batch_tokens=2048))
    requests = [
        PendingRequest([generator.randint(4, 55) for _ in range(16)], ("1x1",), 0.0) for _ in range(connections)
    ]
    waiting = [id(request) for request in requests for _ in request.lengths]
    outcome = simulate(scheduler, requests)
    assert len(outcome.finished) == connections
    for _, batch in outcome.batches:
        assert id(batch.texts[0].request) == waiting[0]  # what waits longest always runs next
        assert batch.tokens % 8 == 0
        for text in batch.texts:
            waiting.remove(id(text.request))
    texts = [tokens for request in requests for tokens in request.lengths]
    in_order = [texts[start : start + 16] for start in range(0, len(texts), 16)]
    seconds = sum(batch.seconds for _, batch in outcome.batches)
    assert seconds < 0.95 * sum(model.seconds(16 * max(batch)) for batch in in_order)
    if connections > 1:  # little more than padding to eight tokens alone
        assert seconds < 1.3 * model.per_token * sum(model.padded(tokens) for tokens in texts)


def test_texts_of_one_padded_length_run_together() -> None:
    scheduler = Scheduler(("1x1",), lambda name: LatencyModel(0.0, 1e-4, token_multiple=8), CONFIG)
    assert scheduler.admit(PendingRequest([17, 30, 24, 8, 20, 32], ("1x1",), 0.0), 0.0) is None
    batches = [scheduler.next_batch(0.0) for _ in range(3)]
    assert [[text.tokens for text in batch.texts] for batch in batches if batch] == [[17, 24, 20], [30, 32], [8]]


def test_policies_run_all_lengths_together() -> None:
    model = LatencyModel(1e-3, 1e-4, token_multiple=8, mixes_lengths=True)
    scheduler = Scheduler(("early",), lambda name: model, replace(CONFIG, max_batch_tokens=80))
    assert scheduler.admit(PendingRequest([17, 30, 24, 8, 20, 90], ("early",), 0.0), 0.0) is None
    batches = [batch for batch in (scheduler.next_batch(0.0) for _ in range(3)) if batch]
    assert [[text.tokens for text in batch.texts] for batch in batches] == [[17, 30, 24], [8, 20], [90]]
    assert [batch.tokens for batch in batches] == [24 + 32 + 24, 8 + 24, 96]


@pytest.mark.parametrize(("token_multiple", "sizes"), [(8, [12, 1]), (1, [13])])
def test_padded_batches_have_few_shapes(token_multiple: int, sizes: list[int]) -> None:
    scheduler = Scheduler(("1x1",), lambda name: LatencyModel(1e-3, 1e-4, token_multiple), CONFIG)
    assert scheduler.admit(PendingRequest([20] * 13, ("1x1",), 0.0), 0.0) is None
    batches = [scheduler.next_batch(0.0) for _ in sizes]
    assert [len(batch.texts) for batch in batches if batch] == sizes
    assert scheduler.queued == 0


def test_light_load_runs_the_best_variant() -> None:
    assert simulate(make_scheduler(), arrivals(40, seconds=5)).fraction("1x1") > 0.9


def test_quality_follows_a_step_of_load() -> None:
    steps = [(50, 0.0), (600, 5.0), (50, 10.0)]
    requests = [request for rate, start in steps for request in arrivals(rate, seconds=5, start=start)]
    outcome = simulate(make_scheduler(), requests)
    assert not outcome.refused
    ranks = [
        sum(VARIANTS.index(batch.variant) for batch in batches) / len(batches)
        for _, start in steps
        if (batches := [batch for at, batch in outcome.batches if start + 0.2 <= at < start + 5])
    ]
    assert ranks[0] < 0.2 < 1.5 < ranks[1]
    assert ranks[2] < 0.2


def test_burst_is_accepted_at_smaller_variants() -> None:
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
    scheduler = make_scheduler(("1x1",), replace(CONFIG, max_queue=10))
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
    scheduler = make_scheduler(("1x1",))
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
    outcome = simulate(make_scheduler(), arrivals(300, seconds=3), slowdown=lambda: 3.0)
    assert not {*outcome.expired} & {*outcome.finished}
    for request, started in outcome.started.items():
        assert started + LATENCY_MODELS[CHEAPEST].seconds(request.lengths[0]) <= request.deadline + 1e-9
    assert simulate(make_scheduler(), arrivals(300, seconds=3), slowdown=lambda: 12.0).expired


def test_static_policy_refuses_for_deadlines_only() -> None:
    scheduler = make_scheduler(("1x1",))
    for _ in range(200):
        assert scheduler.admit(PendingRequest((50,), ("1x1",), 0.0), 0.0) is None
    refusal = scheduler.admit(PendingRequest((50,), ("1x1",), 0.0, 0.5), 0.0)  # planned after the others
    assert refusal is not None
    assert refusal.retry_after > 1.0
    assert scheduler.admit(PendingRequest((50,), ("1x1",), 0.0, 5.0), 0.0) is None
    assert scheduler.admit(PendingRequest((50,), ("1x1",), 0.0, 0.05), 0.0) is None  # planned before the others
    assert scheduler.admit(PendingRequest((50,), ("1x1",), 0.0, 0.012), 0.0) is not None
