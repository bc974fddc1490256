"""Scores on the task suite, in all and for each family and difficulty, at several budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from dynkern.data import Record, encode_prompt, load_records
from dynkern.evaluation.rouge import score
from dynkern.llm import LLM

# answers of the suite take up to twenty tokens of its own BPE
NEW_TOKENS = 32
BATCH_SIZE = 16
Report = Callable[[int, int, str], None]
# by label of a policy, for each record: ROUGE-L F1, and whether a reference was met to the letter
Answers = dict[str, tuple[list[float], list[bool]]]


def budgets(num_layers: int, shares: Sequence[float] = (0.75, 0.5)) -> dict[str, str]:
    """Full depth, and uniform skipping at shares of the layers (quarters), as policies by label."""
    named = {"full": "full"}
    for share in shares:
        layers = max(1, round(num_layers * share))
        if layers < num_layers:
            named[str(Fraction(share))] = f"uniform:{layers}"
    return named


def score_tasks(
    llm: LLM,
    records: Sequence[Record],
    policies: dict[str, str],
    report: Report = lambda done, total, label: None,
) -> dict[str, Any]:
    """Mean ROUGE-L F1 of greedy answers by label of `policies`: "rougeL"; "exact": share of answers
    that are a reference to the letter; "family" and "difficulty": ROUGE-L of each, by label;
    "exact_difficulty": "exact" of each.
    """
    names = ("rougeL", "exact", "family", "difficulty", "exact_difficulty")
    found: dict[str, Any] = {name: {} for name in names}
    families, difficulties = ([r.family for r in records], [r.difficulty for r in records])
    for label, (scores, exact) in score_answers(llm, records, policies, report).items():
        found["rougeL"][label] = sum(scores) / len(scores)
        found["exact"][label] = sum(exact) / len(exact)
        found["family"][label] = _by(families, scores)
        found["difficulty"][label] = _by(difficulties, scores)
        found["exact_difficulty"][label] = _by(difficulties, exact)
    return found


def score_answers(
    llm: LLM, records: Sequence[Record], policies: dict[str, str], report: Report
) -> Answers:
    """Greedy answers to each record, by label of `policies`."""
    bos = llm.spec.bos_token_id
    prompts = [encode_prompt(llm.tokenizer, record, "plain", None, bos) for record in records]
    # rows of a batch are prefilled together: like lengths waste nothing
    order = sorted(range(len(records)), key=lambda place: len(prompts[place].ids))
    found: Answers = {}
    for number, (label, policy) in enumerate(policies.items()):
        scores, exact = [0.0] * len(records), [False] * len(records)
        for start in range(0, len(order), BATCH_SIZE):
            report(number * len(order) + start, len(order) * len(policies), label)
            places = order[start : start + BATCH_SIZE]
            answers = llm.generate(
                [prompts[place].ids for place in places],
                policy,
                max_new_tokens=min(
                    NEW_TOKENS,
                    *(llm.spec.max_positions - len(prompts[place].ids) + 1 for place in places),
                ),
                batch_size=BATCH_SIZE,
            )
            for place, answer in zip(places, answers, strict=True):
                references = records[place].references
                scores[place] = score(answer.text, references)["rougeL"]
                exact[place] = answer.text.strip() in references
        found[label] = (scores, exact)
    report(len(order) * len(policies), len(order) * len(policies), "")
    return found


def _by(kinds: Sequence[Any], scores: Sequence[float]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for kind, value in zip(kinds, scores, strict=True):
        groups.setdefault(str(kind), []).append(value)
    return {kind: sum(values) / len(values) for kind, values in sorted(groups.items())}


def score_checkpoint(folder: Path, source: str, count: int) -> dict[str, Any]:
    """`score_tasks` of a checkpoint in float32 on the first `count` records of a task source."""
    llm = LLM(folder, dtype="float32")
    return score_tasks(llm, load_records(source, limit=count), budgets(llm.spec.num_layers))
