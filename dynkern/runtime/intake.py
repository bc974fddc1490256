"""Intake: requests are checked, grouped and given their routes on the way to the scheduler."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dynkern import routes as route_math
from dynkern.routes import TokenProgram
from dynkern.runtime.prefiller import PrefilledPrompt
from dynkern.runtime.request import PlanRequest, Policy, Request, TokenPolicy
from dynkern.runtime.scheduler import MOST_SAMPLED, GroupKey, PromptKey, Waiting, order_of

if TYPE_CHECKING:
    from dynkern.runtime.engine import Engine, RunOptions


class Intake:
    """Makes scheduler entries of requests, and plans their routes as soon as they can be known.

    count: requests taken so far; mean_length: their mean K/V length half way through. planned: how
    many of them have their route, or a token policy; known: the last of these.
    """

    def __init__(self, engine: Engine, options: RunOptions) -> None:
        self.engine, self.options = engine, options
        self.count = self.planned = 0
        self.known: deque[Waiting] = deque(maxlen=MOST_SAMPLED)
        self._length = 0.0
        self._groups: dict[GroupKey, GroupKey] = {}
        self._checked: dict[int, Policy] = {}

    @property
    def mean_length(self) -> float:
        """Over the requests taken so far."""
        return self._length / max(1, self.count)

    def entries(self, requests: Sequence[Request]) -> list[Waiting]:
        """Entries in the order given. ValueError, one line, for a request that cannot run."""
        self.engine.check(requests, self.options)
        num_layers = self.engine.spec.num_layers
        programs: dict[int, TokenProgram | None] = {}
        made = []
        for number, request in enumerate(requests, self.count):
            policy = request.policy
            if id(policy) not in programs:
                self._check_model(policy)
                lowers = isinstance(policy, TokenPolicy)
                programs[id(policy)] = policy.lower(num_layers) if lowers else None
            group = programs[id(policy)], request.sampling
            # equal keys are one object, which is quick to compare
            group = self._groups.setdefault(group, group) if len(self._groups) < 256 else group
            prompt = request.prompt_ids, None
            made.append(Waiting(request, order_of(request, number), group, num_layers, prompt))
        routed = self.options.prefill == "routed"
        early = [e for e in made if routed or not getattr(e.request.policy, SEES, True)]
        self._plan([e for e in early if e.group[0] is None], {})
        self._note([e for e in made if e.group[0] is not None])
        if routed:
            for entry in made:
                entry.prompt = entry.request.prompt_ids, entry.bits
        self.count += len(made)
        self._length += sum(len(r.prompt_ids) + r.max_new_tokens / 2 for r in requests)
        return made

    def _check_model(self, policy: Policy) -> None:
        """Policies trained for one model have a say on the weights; each is asked once."""
        check = getattr(policy, "check_model", None)
        if check is not None and self._checked.get(id(policy)) is not policy:
            check(self.engine.weights, self.engine.name)
            self._checked[id(policy)] = policy

    def plan(self, entries: Sequence[Waiting], prompts: Mapping[PromptKey, PrefilledPrompt]) -> int:
        """Give a route to those that have none yet and whose prompts are prefilled; how many."""
        able = [
            e for e in entries if e.group[0] is None and e.route is None and e.prompt in prompts
        ]
        self._plan(able, prompts)
        return len(able)

    def _plan(
        self, entries: Sequence[Waiting], prompts: Mapping[PromptKey, PrefilledPrompt]
    ) -> None:
        """Each policy is asked once for all of its requests."""
        by_policy: dict[int, list[Waiting]] = {}
        for entry in entries:
            by_policy.setdefault(id(entry.request.policy), []).append(entry)
        for own in by_policy.values():
            policy: Policy = own[0].request.policy
            asked = [self._asked(entry, prompts.get(entry.prompt)) for entry in own]
            name = f"policy {getattr(policy, 'spec', type(policy).__name__)}"
            num_layers = self.engine.spec.num_layers
            table = route_math.check_routes(name, policy.plan(asked), len(own), num_layers)
            for entry, route, bits in zip(own, table, as_bits(table), strict=True):
                entry.route, entry.bits = route, bits
        self._note(entries)

    def _note(self, entries: Sequence[Waiting]) -> None:
        self.planned += len(entries)
        self.known.extend(entries)

    def _asked(self, entry: Waiting, prompt: PrefilledPrompt | None) -> PlanRequest:
        return PlanRequest(
            entry.request.id,
            entry.request.prompt_ids,
            entry.num_layers,
            self.options.seed,
            None if prompt is None else prompt.hidden,
        )


SEES = "sees_prompt_state"


def as_bits(table: Tensor) -> list[int]:
    """Routes bool [n, L] as integers, bit l for layer l."""
    return [sum(1 << layer for layer, runs in enumerate(row) if runs) for row in table.tolist()]
