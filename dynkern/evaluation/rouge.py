"""ROUGE F1 as arXiv 2410.20022 reports it: the rouge_score library, no stemmer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

METRICS = ("rouge1", "rouge2", "rougeL")


def score(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F1 in 0..1 of rouge1, rouge2 and rougeL; for each metric the best reference counts.

    prediction: generated text, special tokens dropped; an empty one scores 0. The library keeps
    lower-cased runs of a-z and 0-9 only, so texts in other scripts score 0. ValueError without
    references.
    """
    if isinstance(references, str) or not references:
        raise ValueError(f"references: got {references!r}, expected at least one text in a list")
    best = _scorer().score_multi(list(references), prediction)
    return {name: float(best[name].fmeasure) for name in METRICS}


@cache
def _scorer() -> Any:
    # imports nltk, about half a second that `dynkern --help` must not pay
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(METRICS), use_stemmer=False)
