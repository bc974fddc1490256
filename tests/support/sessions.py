"""Random requests, and a listener that holds a session to its word."""

from __future__ import annotations

import random
from dataclasses import replace

from dynkern.llm import LLM
from dynkern.policies import policy
from dynkern.runtime.engine import Engine, RunOptions
from dynkern.runtime.request import Completion, Request, SamplingParams
from dynkern.runtime.session import Session
from support.opt import random_prompts

SAMPLINGS = [SamplingParams(), SamplingParams(0.9, 40, 0.9, 1.5), SamplingParams(0.0, 0, 1.0, 1.3)]


def random_requests(
    count: int,
    specs: list[str],
    samplings: list[SamplingParams] = SAMPLINGS,
    seed: int = 0,
    vocab_size: int = 131,
    longest: int = 20,
    most: int = 24,
) -> list[Request]:
    """Prompts of which some are shared, limits, policies, sampling, EOS ids, some deadlines."""
    draw = random.Random(seed)
    prompts = random_prompts(-(-count * 2 // 3), seed, longest, vocab_size)
    policies = {spec: policy(spec) for spec in specs}
    samplings = list(samplings)
    return [
        Request(
            id=i,
            prompt_ids=tuple(draw.choice(prompts)),
            policy=policies[draw.choice(specs)],
            max_new_tokens=draw.choice([1, 2, draw.randint(3, most)]),
            eos_token_ids=frozenset(draw.sample(range(4, vocab_size), 3)),
            force_length=draw.random() < 0.3,
            sampling=draw.choice(samplings),
            deadline=draw.choice([None, None, None, draw.random()]),
        )
        for i in range(count)
    ]


def alone(llm: LLM, requests: list[Request], options: RunOptions) -> dict[int, Completion]:
    """Each request as the only one of a run."""
    options = replace(options, batch_size=1)
    return {r.id: llm.engine.run([r], options).completions[0] for r in requests}


class Listener:
    """Drives a session and holds it to its word."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tokens: dict[int, list[int]] = {}
        self.done: dict[int, Completion] = {}

    def end(self, completion: Completion) -> None:
        assert completion.request_id not in self.done
        self.done[completion.request_id] = completion

    def step(self) -> None:
        for event in self.session.step():
            assert event.request_id not in self.done
            self.tokens.setdefault(event.request_id, []).append(event.token_id)
            if event.completion is not None:
                self.end(event.completion)
                assert event.request_id not in self.session

    def check(self, requests: list[Request], want: dict[int, Completion]) -> None:
        """Everything has ended once, with the tokens it has alone."""
        assert set(self.done) == {request.id for request in requests}
        for request in requests:
            done, expected = self.done[request.id], want[request.id]
            assert done.token_ids == self.tokens.get(request.id, [])
            if done.stop_reason == "cancelled":
                count = len(done.token_ids)
                assert done.token_ids == expected.token_ids[:count]
                assert done.layers_run == expected.layers_run[: max(0, count - 1)]
            else:
                assert done == expected


def assert_empty(engine: Engine) -> None:
    assert engine._cache.free_lanes == engine._cache.n_lanes
    assert (engine._cache.lane == -1).all() and (engine._cache.length == 0).all()
