"""Scheduler: which waiting request takes the next free slot."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import inf

from torch import Tensor

from dynkern.cost import CostModel, PassCount
from dynkern.routes import TokenProgram
from dynkern.runtime.likeness import Likeness
from dynkern.runtime.request import Request, SamplingParams

SCHEDULES = ("auto", "fifo", "cohort")
# requests that a schedule may put in another order at a time, for each slot. Batches of one depth
# give way to those of another about once in a pool, and are mixed until the last long row has
# ended: 8 generations lost a quarter of what two depths gain. max_wait bounds the waiting
POOL_GENERATIONS = 32
# requests that the cost model looks at, for each slot and at most
SAMPLED_GENERATIONS, MOST_SAMPLED = 32, 512
# the prediction must promise this much before rows leave their order
LEAST_GAIN = 1.03

GroupKey = tuple[TokenProgram | None, SamplingParams]
PromptKey = tuple[tuple[int, ...], int | None]


@dataclass(eq=False)
class Waiting:
    """A request that waits for a slot.

    order: deadline and number of submission. group: rows of equal groups can share a pass.
    prompt: what its prefill depends on. route: bool [L] on the host and bits: the same as an
    integer, bit l for layer l; None until it is planned, and for a token policy. overtaken: passes
    that had run when a later request first went ahead.
    """

    request: Request
    order: tuple[float, int]
    group: GroupKey
    num_layers: int
    prompt: PromptKey
    route: Tensor | None = None
    bits: int | None = None
    overtaken: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether it has its route, or never will."""
        return self.bits is not None or self.group[0] is not None

    @property
    def layers(self) -> int:
        """Bits of the layers that it may run: every one where they are not known."""
        return (1 << self.num_layers) - 1 if self.bits is None else self.bits

    @property
    def lanes(self) -> int:
        """Lanes of K/V that it needs at most."""
        return self.layers.bit_count()

    @property
    def tokens(self) -> int:
        """Positions that it may come to."""
        return len(self.request.prompt_ids) + self.request.max_new_tokens


@dataclass(frozen=True)
class Company:
    """What a newcomer would join: the group that most live rows are of, and the union of their
    layers, as bits. group is None where no row is live.
    """

    group: GroupKey | None = None
    union: int = 0

    @classmethod
    def of(cls, rows: Iterable[Waiting]) -> Company:
        """Of live rows; the group of the first of them wins a tie."""
        rows = list(rows)
        if not rows:
            return cls()
        group = rows[0].group
        # mostly they are one object, and hashing them all costs more than the choice that follows
        if any(row.group is not group for row in rows):
            groups = Counter(row.group for row in rows)
            group = max(groups, key=lambda key: groups[key])
        union = 0
        for row in rows:
            if row.group == group:
                union |= row.layers
        return cls(group, union)


class Scheduler:
    """Requests in order of deadline and submission, and the choice of the next one to admit.

    Requests with a deadline keep that order. Among others a choice is made within the pool: the
    first POOL_GENERATIONS of them for each slot, refilled once all have been admitted. fifo takes
    the first that can share passes with the rows that are live; cohort the one whose route adds
    the fewest layers to their union, and of these the one that uses most of it, so that it begins
    with the deepest. Whoever was overtaken max_wait passes ago goes ahead of those who were not.
    """

    def __init__(self, schedule: str, slots: int, max_wait: int) -> None:
        self.schedule, self.max_wait = schedule, max_wait
        self._pool_size = POOL_GENERATIONS * slots
        self._pool: list[Waiting] = []
        self._alike: Likeness | None = None
        self._unknown: list[Waiting] | None = None
        self._queue: list[Waiting] = []
        self._prompts: Counter[PromptKey] = Counter()

    def __len__(self) -> int:
        return len(self._pool) + len(self._queue)

    def __iter__(self) -> Iterator[Waiting]:
        """Those that may be chosen next, then the others in order."""
        yield from self._pool
        yield from self._queue

    def upcoming(self, company: Company) -> Iterator[Waiting]:
        """As `iter`, those first that would be chosen beside this company as it is."""
        if self.schedule != "cohort" or not self._pool or self._pool[0].order[0] < inf:
            yield from self
            return
        yield from self._likeness().ranked(company)
        yield from self._queue

    def add(self, entries: Sequence[Waiting]) -> None:
        """Let requests wait."""
        if len(entries) == 1:
            insort(self._queue, entries[0], key=_order)
        else:
            self._queue = sorted([*self._queue, *entries], key=_order)
        self._prompts.update(entry.prompt for entry in entries)

    def remove(self, entry: Waiting) -> None:
        """Take a request out, admitted or not."""
        at = bisect_left(self._queue, entry.order, key=_order)
        if at < len(self._queue) and self._queue[at] is entry:
            del self._queue[at]
        else:
            self._pool.remove(entry)
            if self._alike is not None:
                self._alike.remove(entry)
            if not entry.is_known:
                self._unknown = None
        self._prompts[entry.prompt] -= 1
        if not self._prompts[entry.prompt]:
            del self._prompts[entry.prompt]

    def wants(self, prompt: PromptKey) -> bool:
        """Whether a waiting request has this prompt."""
        return prompt in self._prompts

    def pool(self) -> Sequence[Waiting]:
        """Those among which the next is chosen, in order."""
        if not self._pool and self._queue:
            deadline = self._queue[0].order[0]
            same = [e for e in self._queue[: self._pool_size] if e.order[0] == deadline]
            self._pool = same
            self.routes_changed()
            del self._queue[: len(same)]
        return self._pool

    def unknown(self) -> Sequence[Waiting]:
        """Those of the pool that have no route yet but will have one."""
        pool = self.pool()
        if self._unknown is None:
            self._unknown = [entry for entry in pool if not entry.is_known]
        return self._unknown

    def routes_changed(self) -> None:
        """Look at the pool's routes anew: for whoever gives them."""
        self._alike = self._unknown = None

    def next(self, company: Company, now: int) -> Waiting | None:
        """Who should be admitted next, None where nobody waits. now: passes that have run."""
        pool = self.pool()
        if not pool:
            return None
        if self._queue and self._queue[0].order[0] < pool[0].order[0]:
            return self._queue[0]
        if pool[0].order[0] < inf:
            return pool[0]
        # those overtaken are the first of the pool, and the first of them was overtaken first
        is_due = self._is_due(pool[0], now)
        if self.schedule == "cohort":
            return self._likeness().best(company, lambda e: not is_due or self._is_due(e, now))
        if is_due or company.group is None:
            return pool[0]
        return next((e for e in pool if e.group == company.group), pool[0])

    def _is_due(self, entry: Waiting, now: int) -> bool:
        return entry.overtaken is not None and now - entry.overtaken >= self.max_wait

    def _likeness(self) -> Likeness:
        if self._alike is None:
            self._alike = Likeness(self._pool)
        return self._alike

    def admit(self, entry: Waiting, now: int) -> None:
        """Take the chosen one out; whom it overtakes counts the passes from now on."""
        pool = self._pool
        for at in range(bisect_left(pool, True, key=_never_overtaken), len(pool)):
            if pool[at].order >= entry.order:
                break
            pool[at].overtaken = now
        self.remove(entry)


def _never_overtaken(entry: Waiting) -> bool:
    return entry.overtaken is None


def _order(entry: Waiting) -> tuple[float, int]:
    return entry.order


def order_of(request: Request, number: int) -> tuple[float, int]:
    """Earliest deadline first, none last, then by submission."""
    return inf if request.deadline is None else request.deadline, number


def choose_schedule(
    waiting: Iterable[Waiting], slots: int, max_wait: int, cost: CostModel
) -> tuple[str, dict[str, float]]:
    """The schedule that pays for these requests, and the seconds predicted for either.

    Both are gone through with the cost model, for the first requests only; the same requests give
    the same answer. A row that may end at EOS is taken to end somewhere between a quarter and all
    of its limit. ({}: routes are all equal, or nobody has to wait.)
    """
    sample = list(islice(waiting, min(MOST_SAMPLED, SAMPLED_GENERATIONS * slots)))
    if len(sample) <= slots or len({entry.layers for entry in sample}) == 1:
        return "fifo", {}
    predicted = {
        name: _predicted_seconds(sample, name, slots, max_wait, cost) for name in ("fifo", "cohort")
    }
    pays = predicted["fifo"] >= LEAST_GAIN * predicted["cohort"]
    return ("cohort" if pays else "fifo"), predicted


def _predicted_seconds(
    sample: Sequence[Waiting], schedule: str, slots: int, max_wait: int, cost: CostModel
) -> float:
    scheduler = Scheduler(schedule, slots, max_wait)
    scheduler.add([replace(entry, overtaken=None) for entry in sample])
    live: dict[Waiting, int] = {}
    seconds, now = 0.0, 0
    while live or len(scheduler):
        while len(live) < slots and len(scheduler):
            entry = scheduler.next(Company.of(live), now)
            scheduler.admit(entry, now)
            live[entry] = _expected_passes(entry.request, entry.order[1])
        passes = min(live.values())
        seconds += passes * _round_seconds(live, cost)
        now += passes
        live = {entry: left - passes for entry, left in live.items() if left > passes}
    return seconds


def _expected_passes(request: Request, number: int) -> int:
    if request.force_length:
        share = 1.0
    else:
        # multiples of the golden ratio spread evenly, without a random number
        share = 0.25 + 0.75 * (number * 0.6180339887498949 % 1.0)
    return round(share * (request.max_new_tokens - 1))


def _round_seconds(live: Iterable[Waiting], cost: CostModel) -> float:
    """One pass of every group."""
    groups: dict[GroupKey, list[int]] = {}
    for entry in live:
        groups.setdefault(entry.group, []).append(entry.layers)
        depth = entry.num_layers
    return sum(
        cost.pass_time(
            PassCount(len(rows), tuple(sum(r >> layer & 1 for r in rows) for layer in range(depth)))
        )
        for rows in groups.values()
    )
