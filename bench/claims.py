"""python -m bench.claims: every figure that README quotes, beside the committed rows it comes from.

bench/results/claims.csv says for each figure where it stands and which rows give it. This computes
each anew and looks for it in README; exit code 1 where one is gone, differs or has no row.

readme   words of README with the figure in braces, such as "at 8 rows {1.32} ×"
holds    "=" the value rounds to the figure; ">=" and "<=" all values round to it or beyond
of       made of the selected rows: last, min, max, median, mean or (sample standard) deviation
unit     what is made of the value x: x, 100x, 100|x|, 100(1-x), 100(x-1), x/1e9 or x/3600
file     results file; empty where no row supports the figure (note says why)
column   its column; of a text, the first number in it
rows     conditions on columns, "a=1;b=x|y;c=pre*"
over     conditions of the row whose value the others are divided by; empty for none
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, median, stdev

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
UNITS = {
    "x": lambda x: x,
    "100x": lambda x: 100 * x,
    "100|x|": lambda x: 100 * abs(x),
    "100(1-x)": lambda x: 100 * (1 - x),
    "100(x-1)": lambda x: 100 * (x - 1),
    "x/1e9": lambda x: x / 1e9,
    "x/3600": lambda x: x / 3600,
}
PICKS = {
    "last": lambda values: values[-1],
    "min": min,
    "max": max,
    "median": median,
    "mean": fmean,
    "deviation": stdev,
}
Row = dict[str, str]


@dataclass(frozen=True)
class Claim:
    """A row of claims.csv; see the module's words."""

    readme: str
    holds: str
    of: str
    unit: str
    file: str
    column: str
    rows: str
    over: str
    note: str

    @property
    def figure(self) -> str:
        """As it stands in README."""
        return re.search(r"\{(.*?)\}", self.readme).group(1)

    @property
    def words(self) -> str:
        """As they stand in README, white space aside."""
        return re.sub(r"[{}]", "", self.readme)

    def value(self, results: Path = RESULTS) -> float:
        """Computed from the committed rows. ValueError where there are none."""
        values = [_number(row[self.column]) for row in select(results / self.file, self.rows)]
        if self.over:
            below = _number(select(results / self.file, self.over)[-1][self.column])
            values = [value / below for value in values]
        return PICKS[self.of]([UNITS[self.unit](value) for value in values])

    def agrees(self, value: float) -> bool:
        """Whether README says it right, to the decimals that it quotes."""
        quoted = float(self.figure)
        places = len(self.figure.partition(".")[2])
        rounded = float(f"{value:.{places}f}")
        return {"=": rounded == quoted, ">=": rounded >= quoted, "<=": rounded <= quoted}[
            self.holds
        ]


def load(path: Path = RESULTS / "claims.csv") -> list[Claim]:
    """All claims."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Claim(**row) for row in csv.DictReader(file)]


def select(path: Path, conditions: str) -> list[Row]:
    """Rows of a results file, dry runs left out, that meet the conditions. ValueError for none."""
    wanted = dict(part.split("=", 1) for part in conditions.split(";"))
    found = [
        row
        for row in _rows(path)
        if all(any(map(_matcher(row[key]), value.split("|"))) for key, value in wanted.items())
    ]
    if not found:
        raise ValueError(f"{path.name}: no row with {conditions}")
    return found


def _matcher(cell: str):
    return lambda want: cell.startswith(want[:-1]) if want.endswith("*") else cell == want


@cache
def _rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("dry_run", "0") in ("", "0")]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        found = re.search(r"-?\d+(\.\d+)?", cell)
        if found is None:
            raise ValueError(f"{cell!r} holds no number") from None
        return float(found.group())


def places(text: str, claims: list[Claim]) -> Iterator[tuple[Claim, int]]:
    """Where each claim's figure stands in `text` (white space collapsed); -1 where it does not."""
    for claim in claims:
        start = text.find(" ".join(claim.words.split()))
        inside = " ".join(claim.readme.split()).index("{")
        yield claim, start + inside if start >= 0 else -1


def readme() -> str:
    """README's text, white space collapsed."""
    return " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def main() -> int:
    """Print every claim; 1 where one does not stand."""
    text, wrong = readme(), 0
    for claim, at in places(text, load()):
        if not claim.file:
            said, good = f"no row: {claim.note}", False
        else:
            value = claim.value()
            said, good = f"{value:.4g}", claim.agrees(value)
        if at < 0:
            said, good = said + ", not in README", False
        wrong += not good
        source = f"{claim.file}: {claim.of} {claim.column} of {claim.rows}"
        source += f" over {claim.over}" if claim.over else ""
        print(f"{'ok' if good else 'NO'}  {claim.readme}\n    {said}  ({source})")
    print(f"{wrong} do not stand" if wrong else "all stand")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
