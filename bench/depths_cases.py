"""What bench.depths runs: prompts of a table, and a depth for each of them in several ways."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np

from bench.cpu_cases import Routes
from dynkern import routes
from dynkern.allocation.policies import Oracle
from dynkern.allocation.predictor import load_predictor
from dynkern.allocation.schema import digest_ids
from dynkern.allocation.table import Table
from dynkern.allocation.training import parse_budget, split
from dynkern.evaluation.quality import Prompt
from dynkern.evaluation.sweep import model_identity
from dynkern.llm import LLM
from dynkern.manifest import differences
from dynkern.policies import policy as make_policy

FULL = "full"
SCHEDULES = ("fifo", "cohort")


@dataclass(frozen=True)
class Case:
    """One way to run. target: the allocation that it is set beside, "" for full depth."""

    way: str
    target: str
    policy: Any
    schedule: str

    @property
    def name(self) -> str:
        """Names it among the others of a batch size."""
        return f"{self.way} for {self.target}, {self.schedule}" if self.target else self.way


def check_model(llm: LLM, table: Table) -> None:
    """ValueError, one line, where the table is of another model."""
    own = json.loads(json.dumps(model_identity(llm)))
    differing = differences(table.manifest["model"], own)
    if differing:
        raise ValueError(
            f"--table: {table.path} was made with another model ({', '.join(differing)}), expected "
            "one of --model"
        )


def judged_prompts(
    prompts: Sequence[Prompt], table: Table, predictor: str | None, most: int
) -> tuple[list[Prompt], Table]:
    """The first `most` prompts of the data that the table has and that the predictor, if any, was
    not trained on; and the table of these alone. ValueError, one line, where there are none.
    """
    place = {digest: row for row, digest in enumerate(table.digests)}
    digests = [digest_ids(prompt.ids) for prompt in prompts]
    fresh = np.ones(len(prompts), dtype=bool)
    if predictor is not None:
        fresh = ~split(digests, float(load_predictor(predictor).about["train_share"]))
    kept = [i for i, digest in enumerate(digests) if fresh[i] and digest in place][:most]
    if not kept:
        raise ValueError(
            f"--data: none of its {len(prompts)} prompts are in the table and unknown to the "
            "predictor, expected those that the table was filled with"
        )
    rows = np.array([place[digests[i]] for i in kept])
    return [prompts[i] for i in kept], table.part(rows)


def cases(
    llm: LLM,
    ids: Sequence[Sequence[int]],
    table: Table,
    budgets: Sequence[str],
    predictor: str | None,
    batch: int,
) -> list[Case]:
    """Full depth; each allocation under both schedules (one row has no company to choose), the same
    budgets dealt out at random, and uniform routes at their mean.
    """
    schedules = SCHEDULES if batch > 1 else SCHEDULES[:1]
    layers = llm.spec.num_layers
    targets: dict[str, Any] = {}
    for budget in budgets:
        spec = f"oracle:{budget}"
        targets[spec] = Oracle(table, parse_budget(budget, layers), spec)
    if predictor is not None:
        targets["predictor"] = make_policy(f"predictor:{predictor}")
    made = [Case(FULL, "", FULL, schedules[0])]
    for target, policy in targets.items():
        own = routes_of(llm, ids, policy, batch)
        made += [Case("allocation", target, policy, schedule) for schedule in schedules]
        made.append(Case("same at random", target, shuffled(own), schedules[-1]))
        made.append(Case("uniform", target, uniform_mix(layers, own), schedules[0]))
    return made


def routes_of(
    llm: LLM, ids: Sequence[Sequence[int]], policy: Any, batch: int
) -> list[tuple[bool, ...]]:
    """The route of each prompt under a planned policy, as its rows ran it."""
    options = {"max_new_tokens": 2, "force_length": True, "batch_size": batch}
    done = llm.generate(list(ids), policy, **options)
    return [tuple(count > 0 for count in completion.layer_counts) for completion in done]


def shuffled(own: Sequence[tuple[bool, ...]]) -> Routes:
    """The same routes, each for another prompt."""
    dealt = list(own)
    random.Random(0).shuffle(dealt)
    return Routes(dealt)


def uniform_mix(layers: int, own: Sequence[tuple[bool, ...]]) -> Routes:
    """Uniform routes of the two neighbouring budgets, whose mean is that of `own` (half a layer of
    one prompt apart at most).
    """
    total = sum(map(sum, own))
    low, high = floor(total / len(own)), ceil(total / len(own))
    deeper = total - low * len(own)
    dealt = [
        # spread evenly over the prompts
        high if (i + 1) * deeper // len(own) > i * deeper // len(own) else low
        for i in range(len(own))
    ]
    return Routes([routes.uniform(layers, budget) for budget in dealt])
