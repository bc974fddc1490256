"""Scheduler: who goes next, who never starves, and which schedule the cost model chooses."""

from __future__ import annotations

import random

import pytest

from dynkern.cost import CostModel, LayerTimes, roofline_model
from dynkern.models.opt import spec_from_config
from dynkern.policies import policy
from dynkern.routes import TokenProgram
from dynkern.runtime.intake import as_bits
from dynkern.runtime.request import Request, SamplingParams
from dynkern.runtime.scheduler import (
    LEAST_GAIN,
    POOL_GENERATIONS,
    Company,
    Scheduler,
    Waiting,
    choose_schedule,
    order_of,
)
from support.opt import tiny_config

NUM_LAYERS = 12
GREEDY = SamplingParams()
PLANNED = (None, GREEDY)
DRAWN = (TokenProgram("subset", budget=3), GREEDY)
UNIFORM = [0] + [as_bits(policy(f"uniform:{k}").route(NUM_LAYERS)[None])[0] for k in range(1, 13)]
# a layer's weights cost as much as eight of its rows, the head as much as two layers
COST = CostModel(
    LayerTimes((1, 64), (2e-3, 2e-3)), LayerTimes((1, 64), (1e-3 * 9 / 8, 1e-3 * 72 / 8))
)


def waiting(
    number: int,
    bits: int | None = UNIFORM[12],
    group=PLANNED,
    deadline: float | None = None,
    new_tokens: int = 20,
) -> Waiting:
    request = Request(
        number, (2, 5), policy("full"), new_tokens, frozenset(), True, group[1], deadline
    )
    prompt = request.prompt_ids, None
    return Waiting(request, order_of(request, number), group, NUM_LAYERS, prompt, bits=bits)


def numbers(scheduler: Scheduler, live: list[Waiting], count: int, now: int = 0) -> list[int]:
    """The next `count` to be admitted beside the live ones."""
    live, taken = list(live), []
    for _ in range(count):
        entry = scheduler.next(Company.of(live), now)
        scheduler.admit(entry, now)
        live.append(entry)
        taken.append(entry.request.id)
    return taken


def test_fifo_is_the_order_of_submission():
    scheduler = Scheduler("fifo", 4, 100)
    budgets = [12, 1, 5, 12, 2]
    scheduler.add([waiting(i, UNIFORM[k]) for i, k in enumerate(budgets)])
    assert numbers(scheduler, [], 5) == [0, 1, 2, 3, 4]
    assert scheduler.next(Company(), 0) is None and len(scheduler) == 0


def test_cohort_adds_the_fewest_layers_and_then_uses_the_most():
    scheduler = Scheduler("cohort", 4, 100)
    budgets = [3, 12, 5, 1, 5, 4, 12]
    scheduler.add([waiting(i, UNIFORM[k]) for i, k in enumerate(budgets)])
    # beside a row of five layers: the fives, then what is nested in them, deepest first
    assert numbers(scheduler, [waiting(99, UNIFORM[5])], 7) == [2, 4, 5, 0, 3, 1, 6]


def test_cohort_begins_with_the_deepest_and_takes_what_is_like_it():
    scheduler = Scheduler("cohort", 4, 100)
    budgets = [2, 12, 2, 11, 3, 12]
    scheduler.add([waiting(i, UNIFORM[k]) for i, k in enumerate(budgets)])
    assert numbers(scheduler, [], 6) == [1, 5, 3, 4, 0, 2]


def test_routes_that_suit_equally_well_go_in_order():
    scheduler = Scheduler("cohort", 8, 100)
    # beside a row of layers 0 to 5: two of these each, and one of these with one more
    routes = [0b000011, 0b110000, 0b000011, 0b1000001, 0b110000, 0b000011]
    scheduler.add([waiting(i, bits) for i, bits in enumerate(routes)])
    row = [waiting(99, 0b111111)]
    assert list(scheduler.upcoming(Company.of(row))) == list(scheduler)
    assert numbers(scheduler, row, 3) == [0, 1, 2]
    ids = [entry.request.id for entry in scheduler.upcoming(Company.of(row))]
    assert ids == [4, 5, 3] == numbers(scheduler, row, 3)


@pytest.mark.parametrize("schedule", ["fifo", "cohort"])
def test_the_choice_is_the_best_of_the_pool(schedule):
    """Against going through the whole pool each time, as the rule is written."""
    draw, slots, max_wait = random.Random(4), 3, 25
    scheduler = Scheduler(schedule, slots, max_wait)
    entries = [
        waiting(i, draw.choice(UNIFORM[1:]), draw.choice([PLANNED, PLANNED, DRAWN]))
        for i in range(POOL_GENERATIONS * slots * 2)
    ]
    scheduler.add(entries)
    live, overtaken = entries[:0], {}
    for now in range(len(entries)):
        live = [row for row in live if draw.random() < 0.7]
        pool, company = list(scheduler.pool()), Company.of(live)
        due = [e for e in pool if now - overtaken.get(e, now) >= max_wait]
        union = company.union if live else (1 << NUM_LAYERS) - 1

        def misfit(entry, company=company, union=union):
            added = (entry.layers & ~union).bit_count()
            return entry.group != company.group, added, (union & ~entry.layers).bit_count()

        if schedule == "cohort":
            want = min(due or pool, key=misfit)
        else:
            same = [e for e in pool if e.group == company.group]
            want = (due or same or pool)[0]
        assert scheduler.next(company, now) is want
        scheduler.admit(want, now)
        for other in pool:
            if other.order < want.order:
                overtaken.setdefault(other, now)
        live.append(want)
        if pool[1:] and draw.random() < 0.1:
            scheduler.remove(draw.choice([e for e in pool if e is not want]))
        if not len(scheduler):
            break
    assert not len(scheduler) and len(set(overtaken.values())) > 3


def test_routes_given_later_are_looked_at_anew():
    scheduler = Scheduler("cohort", 4, 100)
    entries = [waiting(i, None) for i in range(3)]
    scheduler.add(entries)
    deep = [waiting(9)]
    assert scheduler.next(Company.of(deep), 0) is entries[0]
    assert list(scheduler.unknown()) == entries
    entries[0].bits, entries[2].bits = UNIFORM[2], UNIFORM[12]
    scheduler.routes_changed()
    assert list(scheduler.unknown()) == [entries[1]]
    assert numbers(scheduler, deep, 3) == [1, 2, 0]
    assert list(scheduler.unknown()) == []


def test_a_route_not_yet_known_counts_as_full():
    scheduler = Scheduler("cohort", 4, 100)
    scheduler.add([waiting(0, None), waiting(1, UNIFORM[3])])
    assert numbers(scheduler, [waiting(9, UNIFORM[4])], 2) == [1, 0]
    assert waiting(0, None).lanes == NUM_LAYERS and waiting(1, UNIFORM[3]).lanes == 3


@pytest.mark.parametrize("schedule", ["fifo", "cohort"])
def test_rows_that_can_share_passes_come_first(schedule):
    scheduler = Scheduler(schedule, 4, 100)
    groups = [PLANNED, DRAWN, PLANNED, DRAWN]
    scheduler.add([waiting(i, group=group) for i, group in enumerate(groups)])
    assert numbers(scheduler, [waiting(8, group=DRAWN)], 2) == [1, 3]
    # of two groups, the one with more rows
    company = [waiting(8, group=DRAWN), waiting(9), waiting(10)]
    scheduler.add([waiting(4, group=DRAWN)])
    assert numbers(scheduler, company, 3) == [0, 2, 4]


@pytest.mark.parametrize("schedule", ["fifo", "cohort"])
def test_deadlines_go_first_and_ties_by_submission(schedule):
    scheduler = Scheduler(schedule, 4, 100)
    deadlines = [None, 3.0, 1.0, None, 3.0]
    scheduler.add([waiting(i, UNIFORM[12 - i], deadline=d) for i, d in enumerate(deadlines)])
    assert numbers(scheduler, [], 2) == [2, 1]
    scheduler.add([waiting(5, UNIFORM[12], deadline=0.5)])
    assert numbers(scheduler, [], 4) == [5, 4, 0, 3]


def test_who_was_overtaken_for_long_goes_first():
    scheduler = Scheduler("cohort", 2, 30)
    scheduler.add([waiting(0, UNIFORM[1]), *[waiting(i, UNIFORM[12]) for i in range(1, 9)]])
    deep = [waiting(99, UNIFORM[12])]
    assert numbers(scheduler, deep, 1, now=5) == [1]
    assert numbers(scheduler, deep, 1, now=34) == [2]
    assert numbers(scheduler, deep, 2, now=35) == [0, 3]


def test_of_those_who_were_overtaken_for_long_the_best_goes_first():
    scheduler = Scheduler("cohort", 2, 30)
    budgets = [1, 4, 2, 12, 12]
    scheduler.add([waiting(i, UNIFORM[k]) for i, k in enumerate(budgets)])
    assert numbers(scheduler, [waiting(99, UNIFORM[12])], 1, now=5) == [3]
    assert numbers(scheduler, [waiting(99, UNIFORM[12])], 1, now=34) == [4]
    scheduler.add([waiting(5, UNIFORM[2])])
    assert numbers(scheduler, [waiting(99, UNIFORM[2])], 3, now=35) == [2, 0, 1]


@pytest.mark.parametrize("schedule", ["fifo", "cohort"])
def test_everybody_is_served_in_bounded_time(schedule):
    """Arrivals without end: nobody is overtaken by more than a pool, or for more than max_wait
    passes and the time that others due take to find a slot.
    """
    draw, slots, max_wait = random.Random(5), 4, 60
    scheduler = Scheduler(schedule, slots, max_wait)
    live: dict[Waiting, int] = {}
    came, began, number, overtakers = {}, {}, 0, {}
    for now in range(0, 4000):
        live = {entry: left - 1 for entry, left in live.items() if left > 1}
        while len(scheduler) < 60:
            group = draw.choice([PLANNED, PLANNED, DRAWN])
            scheduler.add([waiting(number, UNIFORM[draw.randint(1, 12)], group)])
            came[number] = now
            number += 1
        while len(live) < slots:
            entry = scheduler.next(Company.of(live), now)
            scheduler.admit(entry, now)
            began[entry.request.id] = now
            for other in scheduler:
                if other.order < entry.order:
                    overtakers[other.request.id] = overtakers.get(other.request.id, 0) + 1
            live[entry] = draw.randint(1, 12)
    assert max(overtakers.values()) < POOL_GENERATIONS * slots
    # at most a pool is due at once, and finds slots at one in 1.6 passes
    first = sorted(began)[: len(began) - 100]
    assert len(first) > 1500 and first == list(range(len(first)))
    waits = [began[i] - came[i] for i in first]
    assert max(waits) <= 60 * 6.5 / slots + max_wait + POOL_GENERATIONS * slots * 6.5 / slots


def test_entries_can_be_taken_back():
    scheduler = Scheduler("fifo", 1, 100)
    entries = [waiting(i) for i in range(POOL_GENERATIONS + 12)]
    scheduler.add(entries)
    assert scheduler.pool() == entries[:POOL_GENERATIONS]
    for gone in (entries[3], entries[-5]):
        scheduler.remove(gone)
    assert scheduler.wants(entries[0].prompt)
    rest = [i for i in range(len(entries)) if i not in (3, len(entries) - 5)]
    assert [entry.request.id for entry in scheduler] == rest
    assert numbers(scheduler, [], len(rest)) == rest
    assert not scheduler.wants(entries[0].prompt)


# -- the choice between schedules ----------------------------------------------------------------


def mix(budgets, count: int = 240, seed: int = 0) -> list[Waiting]:
    draw = random.Random(seed)
    return [waiting(i, UNIFORM[draw.choice(budgets)]) for i in range(count)]


def test_the_cost_model_chooses_cohort_where_unions_shrink():
    for budgets in ([3, 12], range(1, 13)):
        name, predicted = choose_schedule(mix(budgets), 4, 10_000, COST)
        assert name == "cohort"
        assert predicted["fifo"] > 1.15 * predicted["cohort"]


def test_it_keeps_the_order_where_nothing_is_to_be_had():
    assert choose_schedule(mix([6]), 4, 512, COST) == ("fifo", {})
    assert choose_schedule(mix([3, 12], count=4), 4, 512, COST) == ("fifo", {})
    # rows cost what they cost, weights nothing
    rows_only = CostModel(LayerTimes((1, 64), (1e-3, 1e-3)), LayerTimes((1, 64), (1e-3, 64e-3)))
    name, predicted = choose_schedule(mix([3, 12]), 4, 512, rows_only)
    assert name == "fifo"
    assert predicted["fifo"] < LEAST_GAIN * predicted["cohort"]


def test_the_choice_is_deterministic():
    entries = mix(range(1, 13))
    first = choose_schedule(entries, 8, 512, COST)
    assert choose_schedule(entries, 8, 512, COST) == first
    assert all(entry.overtaken is None for entry in entries)


def test_predictions_count_every_pass():
    # two slots, rows of 19 passes, budgets 12 and 1 in turn: fifo runs full unions throughout
    entries = [waiting(i, UNIFORM[12 if i % 2 else 1]) for i in range(8)]
    _, predicted = choose_schedule(entries, 2, 10_000, COST)
    mixed = 2e-3 + COST.layer(2) + 11 * COST.layer(1)
    assert predicted["fifo"] == pytest.approx(4 * 19 * mixed)
    shallow, deep = 2e-3 + COST.layer(2), 2e-3 + 12 * COST.layer(2)
    assert predicted["cohort"] == pytest.approx(2 * 19 * (shallow + deep))


def test_the_roofline_as_a_cost_model():
    sizes = {"hidden_size": 66, "ffn_dim": 256, "num_hidden_layers": 12}
    spec = spec_from_config(tiny_config(**sizes, word_embed_proj_dim=66).to_dict())
    model = roofline_model(spec, 32, 50.0, 4, 4, bandwidth=30e9, peak=200e9)
    assert model.layer.rows == model.fixed.rows == tuple(range(1, 33))
    weights = 4 * 66 * 66 + 2 * 66 * 256
    assert model.layer(1) >= weights * 4 / 30e9
    # memory bounds few rows, arithmetic many
    assert model.layer(2) < 1.2 * model.layer(1)
    assert model.layer(32) > 1.5 * model.layer(1)
    assert choose_schedule(mix([3, 12]), 8, 10_000, model)[0] == "cohort"
