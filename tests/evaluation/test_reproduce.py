"""`dynkern reproduce` runs its experiments and says what holds, no more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dynkern.cli import main
from dynkern.evaluation import reproduce, reproduce_oracle
from dynkern.evaluation.claims import judge, judge_at_most, judge_not_worse
from dynkern.evaluation.reproduce import by_number, closest_pair
from dynkern.evaluation.reproduce_oracle import held_out_claims, mixed
from dynkern.training import controllers
from support.checkpoint import save_checkpoint, save_records
from support.tables import made_table

pytestmark = pytest.mark.usefixtures("brief_windows")


def test_verdicts_follow_intervals():
    assert [judge(i) for i in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == ["yes", "no", "undecided"]
    intervals = ((-0.2, -0.1), (-0.1, 0.1), (-0.01, 0.1))
    assert [judge_not_worse(i, 0.5) for i in intervals] == ["no", "undecided", "yes"]
    # nothing is no worse than next to nothing
    assert judge_not_worse((0.0, 0.0), 0.01) == "undecided"
    shares = ((0.1, 0.2), (0.1, 0.3), (0.25, 0.3), (0.1, 0.233))
    expected = ["yes", "undecided", "no", "yes"]
    assert [judge_at_most(i, 0.233) for i in shares] == expected


def test_only_gates_that_decide_something_are_compared():
    assert closest_pair({"a": 2.0, "b": 7.0}, {"c": 2.0, "d": 5.0}, 12) == ("b", "d")
    assert closest_pair({"a": 4.0, "b": 7.0}, {"c": 6.5, "d": 5.0}, 12) == ("b", "c")
    assert closest_pair({"a": 2.0}, {"d": 5.0}, 12) is None
    assert closest_pair({"a": 4.0}, {"d": 12.0}, 12) is None


def test_a_budget_of_10_comes_behind_one_of_6():
    names = ["hidden-1-alpha1", "fixed-1-alpha1-budget10", "fixed-1-alpha0.5-budget6"]
    names += ["fixed-1-alpha1-budget6.5", "hidden-1-alpha0.5", "fixed-2x64-alpha1-budget6"]
    assert sorted(names, key=by_number) == [names[place] for place in (2, 3, 1, 5, 4, 0)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reproduce")
    save_checkpoint(directory / "model", num_layers=4)
    save_records(directory / "data.jsonl", 30)
    save_records(directory / "test.jsonl", 5)
    return directory


COMMAND = "reproduce --model {p}/model --data {p}/data.jsonl --template plain --output {out}"


OPTIONS = (
    "--limit 4 --samples-limit 3 --samples 2 --steps 2 --max-length 140 --max-new-tokens 5 "
    "--batch-size 4 --repeat 1"
)


def _files(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def _words(place: Path, out: Path) -> list[str]:
    return [word.format(p=place, out=out) for word in f"{COMMAND} {OPTIONS}".split()]


@pytest.fixture(scope="module")
def whole(place):
    assert main(_words(place, place / "whole")) == 0
    return place / "whole"


def test_a_report_names_every_claim_and_is_not_made_twice(place, whole, capsys):
    words, out = _words(place, whole), whole
    claims = json.loads((out / "report.json").read_text())["claims"]
    # one of hidden states, two budgets, the oracle's three controls and its time
    assert len(claims) == 8
    low, high = claims[0]["interval"]
    assert low <= high and claims[0]["holds"] == judge((low, high))
    assert ["(budget 2)" in claims[1]["claim"], "(budget 3)" in claims[2]["claim"]] == [True] * 2
    assert "23.3%" in claims[3]["claim"] and claims[3]["holds"] == "no"
    assert claims[3]["interval"][0] >= 0.25
    assert "held out" in claims[5]["claim"] and "held out" in claims[6]["claim"]
    # of a single round nothing is said
    assert "possible" in claims[7]["measured"] and claims[7]["holds"] == "undecided"
    page = (out / "report.html").read_text()
    assert "Of 4 claims of the paper" in page and "Of 4 controls and questions beyond it" in page
    assert "An oracle&#39;s budget for each sequence" in page
    report = (out / "report.md").read_text()
    assert all(claim["claim"] in report for claim in claims)
    shares = next(line for line in report.splitlines() if line.startswith("| share"))
    given = [float(cell.strip(" %")) for cell in shares.split("|")[2:-1]]
    assert len(given) == 4 and sum(given) == pytest.approx(100, abs=0.3)
    assert (out / "controllers" / "sweep.csv").is_file()
    rows = (out / "controllers.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 + 2 + 1
    # stages that are done are not done again
    with capsys.disabled():
        before = _files(out)
        assert main([*words, "--resume"]) == 0
        after = _files(out)
    assert before.keys() == after.keys()
    kept = ("cosine.csv", "claims.json", "time.json", "controller.safetensors", "controllers.csv")
    for name, at in before.items():
        assert not name.endswith(kept) or after[name] == at, name
    assert (out / "report.md").read_text() == report
    assert main(words) == 2
    assert "holds a run; --resume goes on" in capsys.readouterr().err
    assert main([*words, "--resume", "--seed", "4"]) == 2
    assert "resume: the stopped run had seed 0, got 4" in capsys.readouterr().err


STOPS = [
    (reproduce, "route_effects", 1),
    (controllers, "train", 2),
    (controllers, "write_sweep", 1),
    (reproduce, "score", 7),
    (reproduce_oracle, "run_oracle", 1),
    (reproduce_oracle, "run_oracle", 2),
    (reproduce_oracle, "measure_speed", 1),
    (reproduce, "reproduce_report", 1),
]


def test_a_run_that_is_stopped_in_every_stage_comes_out_the_same(place, whole, tmp_path):
    words = _words(place, tmp_path / "out")
    for module, name, at in STOPS:
        calls, function = iter(range(1, at + 1)), getattr(module, name)

        def stop(*args, calls=calls, at=at, function=function, **kwargs):
            if next(calls) == at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, stop)
            assert main(words) == 130, name
        words = [*words, "--resume"] if "--resume" not in words else words
        assert not (tmp_path / "out" / "report.html").exists()
    assert main(words) == 0
    found, expected = (
        json.loads((out / "report.json").read_text())["claims"] for out in (tmp_path / "out", whole)
    )
    assert found[:7] == expected[:7] and len(found) == len(expected) == 8


def test_a_grid_of_alphas_compares_its_closest_pair(place, tmp_path):
    options = f"{OPTIONS} --samples 0 --repeat 0 --alpha 0.5 --test {{p}}/test.jsonl"
    words = f"{COMMAND} {options}".split()
    assert main([word.format(p=place, out=tmp_path) for word in words]) == 0
    claims = json.loads((tmp_path / "report.json").read_text())["claims"]
    assert len(claims) == 4
    assert "closest pair" in claims[1]["claim"]
    if claims[1]["interval"] is None:
        assert claims[1]["holds"] == "undecided"
    assert "for this model on test.jsonl?" in (tmp_path / "report.html").read_text()
    records = (tmp_path / "oracle" / "greedy.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in records] == ["r0", "r1", "r2", "r3"]


def test_the_held_out_oracle_does_not_profit_from_noise():
    draws = np.random.default_rng(3)
    noise = made_table(draws.uniform(size=(300, 6, 4)))
    against_full, against_random = held_out_claims(noise, 0)
    # nothing to know: choosing is worth what chance is
    assert against_random.holds == "undecided" and against_full.interval[0] < 0
    assert "1.40 of 6 layers" in against_random.measured
    # every sequence has one depth at which it is good, whatever the sample
    best = draws.integers(1, 3, size=300)
    signal = 0.9 * (np.arange(1, 7) == best[:, None])[:, :, None] + 0.05 * noise.quality
    against_full, against_random = held_out_claims(made_table(signal), 0)
    assert (against_full.holds, against_random.holds) == ("yes", "yes")


def test_between_two_routes_scores_are_a_mix():
    quality = np.array([[0.0, 0.4, 1.0], [0.5, 0.5, 0.7]])
    assert mixed(quality, np.array([1.0, 2.0, 3.0]), 2.5) == pytest.approx([0.7, 0.6])
    assert mixed(quality, np.array([1.0, 2.0, 3.0]), 1.0) == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--limit 0", "limit: got 0"),
        ("--alpha -1", "alpha: got -1.0"),
        ("--budget 5", "budget: got 5, expected 2 to the model's 4 layers"),
        ("--samples 3", "samples: got 3, expected 0 or an even number"),
        ("--repeat -1", "repeat: got -1"),
        ("--test nothing.jsonl", "nothing.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, capsys, options, text):
    words = f"{COMMAND} {options}".split()
    assert main([word.format(p=place, out=tmp_path / "out") for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynkern: ") and error.count("\n") == 1 and text in error
