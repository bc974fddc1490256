"""From per-sequence rows to what is said of a policy: means, intervals, agreement, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynkern.evaluation.rouge import METRICS


def bootstrap_interval(
    scores: Sequence[float], seed: int = 0, n: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-sequence `scores`, from n resamples.

    Equal seeds and lengths draw the same sequences. ValueError for no scores, or one that is not
    finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size:
        raise ValueError("scores: got none, expected at least one")
    if not np.isfinite(values).all():
        raise ValueError("scores: got a value that is not finite, expected numbers")
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(values.size, size=values.size)].mean() for _ in range(n)]
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return float(low), float(high)


def difference_interval(
    scores: Sequence[float], full_scores: Sequence[float], seed: int = 0, n: int = 1000
) -> tuple[float, float]:
    """95 % bootstrap interval of mean(scores - full_scores), paired by place: what both share of a
    prompt's difficulty cancels. ValueError for unequal lengths.
    """
    if len(scores) != len(full_scores):
        raise ValueError(
            f"full_scores: got {len(full_scores)}, expected {len(scores)}, one for each score"
        )
    return bootstrap_interval(np.subtract(scores, full_scores), seed, n)


def agreement(ids: Sequence[int], full_ids: Sequence[int]) -> float:
    """Share of positions with the same token over the longer length; 1.0 where both are empty."""
    longest = max(len(ids), len(full_ids))
    if not longest:
        return 1.0
    return sum(a == b for a, b in zip(ids, full_ids, strict=False)) / longest


def aggregate(
    rows: Sequence[Mapping[str, Any]],
    full_rows: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    prefill: str = "full",
) -> dict[str, Any]:
    """The quality columns of a policy from its rows of samples.jsonl.

    full_rows: those of the full policy, matched by prompt_id; without them what compares with full
    is None. Returns means over sequences of rouge1, rouge2, rougeL and agreement_with_full;
    rougeL_ci and rougeL_diff_ci as [low, high]; new_tokens in total; mean_layers over all routed
    passes (tokens 2..N), None without any; mean_layers_end_to_end over all tokens, where token 1
    comes from a pass through every layer (prefill="full") or through the row's own route
    ("routed"; rows of one token do not tell their route and are left out).

    ValueError for no rows, or a prompt that full_rows lacks.
    """
    if not rows:
        raise ValueError("rows: got none, expected at least one")
    scores = [float(row["rougeL"]) for row in rows]
    result: dict[str, Any] = {name: float(np.mean([row[name] for row in rows])) for name in METRICS}
    result["rougeL_ci"] = list(bootstrap_interval(scores, seed))
    result |= {"rougeL_diff_ci": None, "agreement_with_full": None}
    if full_rows is not None:
        full = {row["prompt_id"]: row for row in full_rows}
        lacking = [row["prompt_id"] for row in rows if row["prompt_id"] not in full]
        if lacking:
            raise ValueError(
                f"full_rows: got none for prompt {lacking[0]!r}, expected every prompt of rows"
            )
        twins = [full[row["prompt_id"]] for row in rows]
        full_scores = [float(twin["rougeL"]) for twin in twins]
        result["rougeL_diff_ci"] = list(difference_interval(scores, full_scores, seed))
        result["agreement_with_full"] = float(
            np.mean(
                [
                    agreement(row["token_ids"], twin["token_ids"])
                    for row, twin in zip(rows, twins, strict=True)
                ]
            )
        )
    return result | _layers(rows, prefill)


def _layers(rows: Sequence[Mapping[str, Any]], prefill: str) -> dict[str, Any]:
    executed = routed_passes = first_layers = first_passes = 0
    for row in rows:
        passes = max(row["new_tokens"] - 1, 0)
        ran = sum(row["layer_counts"])
        executed += ran
        routed_passes += passes
        if prefill == "full" and row["new_tokens"]:
            first_layers += len(row["layer_counts"])
            first_passes += 1
        elif passes:
            # a planned route is the same in every pass, so this division leaves no rest
            first_layers += ran / passes
            first_passes += 1
    tokens = routed_passes + first_passes
    return {
        "mean_layers": executed / routed_passes if routed_passes else None,
        "mean_layers_end_to_end": (executed + first_layers) / tokens if tokens else None,
        "new_tokens": sum(row["new_tokens"] for row in rows),
    }
