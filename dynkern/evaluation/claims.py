"""Claims, and what an interval says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dynkern.files import write_whole

# how claims end that the paper does not make
CONTROL, BEYOND = "(control)", "(beyond the paper)"
INTERVALS = "Intervals: 95 %, bootstrap over sequences, unless a row says otherwise."
# a ROUGE-L that is lower by less counts as no worse
MARGIN = 0.02


@dataclass(frozen=True)
class Claim:
    """One line of a report. interval: 95 % by bootstrap over sequences, unless `measured` says
    otherwise; holds: "yes", "no", "undecided", "not measured".
    """

    claim: str
    measured: str
    interval: tuple[float, float] | None
    holds: str

    @property
    def is_of_the_paper(self) -> bool:
        """Or else a control, or a question beyond it."""
        return not self.claim.endswith((CONTROL, BEYOND))


def judge(interval: tuple[float, float]) -> str:
    """Whether a difference that a claim says is above 0 is so, by its interval."""
    low, high = interval
    return "yes" if low > 0 else "no" if high < 0 else "undecided"


def judge_not_worse(interval: tuple[float, float], than: float) -> str:
    """Whether a difference is above -MARGIN by its interval; "no" where that lies below 0. than:
    the mean compared with, of which nothing can be said where it is below MARGIN itself.
    """
    low, high = interval
    if than < MARGIN:
        return "undecided"
    return "yes" if low > -MARGIN else "no" if high < 0 else "undecided"


def judge_at_most(interval: tuple[float, float], most: float) -> str:
    """Whether a number is no more than `most`, by its interval."""
    low, high = interval
    return "yes" if high <= most else "no" if low > most else "undecided"


def kept(path: Path, resume: bool, make: Callable[[], list[Claim]]) -> list[Claim]:
    """The claims of a stage, from its file where a resumed run finds it, else made and kept."""
    if resume and path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        return [
            Claim(c["claim"], c["measured"], c["interval"] and tuple(c["interval"]), c["holds"])
            for c in found
        ]
    claims = make()
    text = json.dumps([asdict(claim) for claim in claims], indent=2) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    return claims


def claim_table(claims: Sequence[Claim]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| claim | measured here | interval | holds? |", "|---|---|---|---|"]
    for claim in claims:
        low_high = "" if claim.interval is None else "{:.4f} to {:.4f}".format(*claim.interval)
        lines.append(f"| {claim.claim} | {claim.measured} | {low_high} | {claim.holds} |")
    return [*lines, "", INTERVALS]
