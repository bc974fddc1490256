"""README's figures come from committed rows, and no measured figure stands there without one."""

from __future__ import annotations

import re

import pytest

from bench import claims

CLAIMS = claims.load()
README = claims.readme()
# where README tells what was measured: every decimal and every percentage there needs its row
MEASURED = (
    ("*A trained 11M OPT", "the intervals overlap).*"),
    ("On 256 of its test tasks", "(`bench/results/eval_tasks.csv`)."),
    ("*The CPU engine on a random-weight OPT-125m", "(`bench/results/cpu.csv`).*"),
    ("On the 11M model of the first picture int8", "memory there gives two cores"),
    ("| case | measured |", "(earlier rows of `cpu.csv`)."),
    ("a model of this shape, with random weights", "(`bench/results/cpu.csv`)"),
    ("On the 11M model of the first picture an oracle", "(`bench/results/oracle_table.csv`)"),
    ("On an OPT-125m in bfloat16 at 4 rows and 128 new", "(`bench/results/scheduling.csv`)."),
    ("with 256 test prompts and `--budget 6", "(`bench/results/reproduce.csv`)."),
    ("What such gates are worth on the 11M model", "The gates cannot be told from"),
    ("The shipped run took 2.1 hours", "were 0.10 apart there."),
    ("Intel's cores have AVX-512 BF16", "`bench/results/levels.csv`)"),
    ("- At 8 rows the bfloat16 engine", "- The CPU engine was measured"),
    ("- Layers chosen at random per sequence", "- No kernel of this version"),
)
FIGURE = re.compile(r"(?<![\w./-])(\d+\.\d+|\d+(?= %))(?![\w.])")
# a version of software, and the paper's share
OTHER = {"2.13", "23.3"}


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.file], ids=lambda c: c.readme[:60])
def test_the_rows_give_the_figure(claim):
    value = claim.value()
    assert claim.agrees(value), f"README: {claim.readme}; {claim.file} gives {value}"


def test_every_claim_stands_in_readme():
    gone = [claim.readme for claim, at in claims.places(README, CLAIMS) if at < 0]
    assert gone == []


def test_figures_without_rows_say_why():
    assert [c.readme for c in CLAIMS if not c.file and not c.note] == []


def test_every_measured_figure_has_a_claim():
    covered = {at for _, at in claims.places(README, CLAIMS)}
    missing = []
    for start, end in MEASURED:
        begin = README.index(start)
        stop = README.index(end, begin)
        for found in FIGURE.finditer(README, begin, stop):
            if found.start() not in covered and found.group() not in OTHER:
                missing.append(README[found.start() - 40 : found.end() + 20])
    assert missing == []


def test_a_figure_is_judged_to_its_decimals():
    claim = claims.Claim("about {1.2} ×", "=", "last", "x", "a.csv", "x", "", "", "")
    assert claim.words == "about 1.2 ×" and claim.figure == "1.2"
    assert [claim.agrees(value) for value in (1.16, 1.24, 1.14, 1.26)] == [True, True, False, False]
    least = claims.Claim("{0.97} or more", ">=", "min", "x", "a.csv", "x", "", "", "")
    assert [least.agrees(value) for value in (0.966, 2.0, 0.964)] == [True, True, False]


def test_rows_are_selected_divided_and_picked(tmp_path):
    (tmp_path / "a.csv").write_text(
        "dry_run,case,batch,x,note\n0,full,1,8,\n0,uniform:3,1,4,about 61 % of\n"
        "0,uniform:6,8,2,\n1,uniform:6,8,99,\n"
    )

    def value(**fields: str) -> float:
        empty = dict.fromkeys(("holds", "note", "over"), "")
        given = {"readme": "{1}", "of": "last", "unit": "x", "file": "a.csv", "column": "x"}
        return claims.Claim(**{**empty, **given, **fields}).value(tmp_path)

    assert value(rows="case=uniform:*", of="max") == 4
    assert value(rows="case=uniform:*", of="min", over="case=full") == 0.25
    assert value(rows="case=full|uniform:6;batch=8", unit="100(1-x)") == -100
    assert value(rows="case=uniform:*", of="deviation") == pytest.approx(2**0.5)
    assert value(rows="case=full", unit="x/3600") == pytest.approx(8 / 3600)
    assert value(rows="case=uniform:3", column="note") == 61
    with pytest.raises(ValueError, match="a.csv: no row with case=none"):
        value(rows="case=none")
