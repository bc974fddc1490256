"""`dynkern reproduce` runs its experiments and says what holds, no more."""

from __future__ import annotations

import json

import pytest

from dynkern.cli import main
from dynkern.evaluation.reproduce import judge, judge_not_worse
from support.checkpoint import save_checkpoint, save_records


def test_verdicts_follow_intervals():
    assert [judge(i) for i in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == ["yes", "no", "undecided"]
    assert [judge_not_worse(i) for i in ((-0.2, -0.1), (-0.1, 0.1))] == ["no", "yes"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reproduce")
    save_checkpoint(directory / "model", num_layers=4)
    save_records(directory / "data.jsonl", 30)
    return directory


COMMAND = "reproduce --model {p}/model --data {p}/data.jsonl --template plain --output {out}"


def test_a_report_names_every_claim(place, tmp_path):
    options = "--limit 4 --steps 2 --max-length 140 --max-new-tokens 5 --alpha 0.5 --batch-size 4"
    words = f"{COMMAND} {options}".split()
    assert main([word.format(p=place, out=tmp_path) for word in words]) == 0
    claims = json.loads((tmp_path / "report.json").read_text())["claims"]
    assert len(claims) == 3
    for claim in claims[:2]:
        low, high = claim["interval"]
        assert low <= high and claim["holds"] in ("yes", "no", "undecided")
    assert claims[0]["holds"] == judge(claims[0]["interval"])
    assert (claims[2]["holds"], claims[2]["interval"]) == ("not measured", None)
    report = (tmp_path / "report.md").read_text()
    assert all(claim["claim"] in report for claim in claims)
    assert (tmp_path / "controllers" / "sweep.csv").is_file()
    assert len((tmp_path / "controllers.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "text"), [("--limit 0", "limit: got 0"), ("--alpha -1", "alpha: got -1.0")]
)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, capsys, options, text):
    words = f"{COMMAND} {options}".split()
    assert main([word.format(p=place, out=tmp_path / "out") for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynkern: ") and error.count("\n") == 1 and text in error
