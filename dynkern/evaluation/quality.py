"""The quality pass: texts and scores of every prompt under every policy, resumable row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from dynkern.data import Record
from dynkern.evaluation.rouge import score
from dynkern.evaluation.samples import SampleStore
from dynkern.llm import LLM
from dynkern.runtime.request import Completion, Policy


@dataclass(frozen=True)
class Prompt:
    """A record, its encoded prompt, and its place in the data: the counter of its randomness."""

    index: int
    record: Record
    ids: list[int]


def run_quality(
    llm: LLM,
    prompts: Sequence[Prompt],
    policies: dict[str, Policy],
    store: SampleStore,
    batch_size: int,
    run: dict[str, Any],
    report: Callable[[int, int, str], None],
    *,
    rank: int = 0,
    size: int = 1,
    elsewhere: Mapping[str, Set[str]] | None = None,
) -> None:
    """Generate and score what `store` does not hold yet; rows are kept as soon as they are done.

    Batches are cut by the place in the data, so that a row decodes in the same company in a
    resumed run and on any rank: of `size` ranks each takes every size-th batch. elsewhere: prompt
    ids by policy that another store holds. run: further keyword arguments of LLM.run.
    report(done, total, label) counts texts of this rank.
    """
    batches = [prompts[at : at + batch_size] for at in range(0, len(prompts), batch_size)]
    batches = batches[rank::size]
    total = sum(map(len, batches)) * len(policies)
    done_before = {spec: store.done(spec) | (elsewhere or {}).get(spec, set()) for spec in policies}
    mine = {prompt.record.id for batch in batches for prompt in batch}
    done = sum(len(ids & mine) for ids in done_before.values())
    for spec, policy in policies.items():
        for batch in batches:
            missing = [p for p in batch if p.record.id not in done_before[spec]]
            report(done, total, spec)
            if not missing:
                continue
            completions = llm.generate(
                [p.ids for p in batch],
                policy,
                batch_size=batch_size,
                request_ids=[p.index for p in batch],
                **run,
            )
            store.append(
                sample_row(spec, prompt, completion)
                for prompt, completion in zip(batch, completions, strict=True)
                if prompt.record.id not in done_before[spec]
            )
            done += len(missing)
    report(total, total, "done")


def sample_row(spec: str, prompt: Prompt, completion: Completion) -> dict[str, Any]:
    """The line of samples.jsonl for one text."""
    return {
        "policy": spec,
        "prompt_id": prompt.record.id,
        "text": completion.text,
        "token_ids": completion.token_ids,
        **score(completion.text, prompt.record.references),
        "new_tokens": len(completion.token_ids),
        "mean_layers": completion.mean_layers,
        "layer_counts": completion.layer_counts,
        "stop_reason": completion.stop_reason,
    }
