"""`dynkern reproduce` runs its experiments and says what holds, no more."""

from __future__ import annotations

import json

import pytest

from dynkern.cli import main
from dynkern.evaluation.reproduce import closest_pair, judge, judge_not_worse
from support.checkpoint import save_checkpoint, save_records


def test_verdicts_follow_intervals():
    assert [judge(i) for i in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == ["yes", "no", "undecided"]
    intervals = ((-0.2, -0.1), (-0.1, 0.1), (-0.01, 0.1))
    assert [judge_not_worse(i) for i in intervals] == ["no", "undecided", "yes"]


def test_only_gates_that_decide_something_are_compared():
    assert closest_pair({"a": 2.0, "b": 7.0}, {"c": 2.0, "d": 5.0}, 12) == ("b", "d")
    assert closest_pair({"a": 4.0, "b": 7.0}, {"c": 6.5, "d": 5.0}, 12) == ("b", "c")
    assert closest_pair({"a": 2.0}, {"d": 5.0}, 12) is None
    assert closest_pair({"a": 4.0}, {"d": 12.0}, 12) is None


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
    low, high = claims[0]["interval"]
    assert low <= high and claims[0]["holds"] == judge((low, high))
    if claims[1]["interval"] is None:
        assert claims[1]["holds"] == "undecided"
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
