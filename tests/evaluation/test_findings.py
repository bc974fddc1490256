"""The sentences of a report follow its numbers, whichever way these fall."""

from __future__ import annotations

import json

import pytest

from dynkern.cli import main
from dynkern.evaluation.findings import findings, overlap, verdict
from dynkern.evaluation.names import Styles, display_names, family_of, listed
from support.checkpoint import save_checkpoint, save_records
from support.pages import parse


def run(policy: str, rouge: float, reach: float = 0.05, **more) -> dict:
    return {
        "policy": policy,
        "rougeL": rouge,
        "rougeL_ci": [rouge - reach, rouge + reach],
        "rougeL_diff_ci": None,
        "mean_layers": 6.0,
        "agreement_with_full": 0.5,
        **more,
    }


FULL = run("full", 0.4, mean_layers=12.0, speedup=1.0)


def timed(policy: str, diff: tuple[float, float], speedup: float, spread: tuple, **more) -> dict:
    extra = {"speedup": speedup, "speedup_spread": spread, "speedup_decode": speedup + 1}
    return run(policy, 0.4 + sum(diff) / 2, rougeL_diff_ci=diff, **{**extra, **more})


def test_differences_count_only_where_the_paired_interval_is_clear_of_0():
    diffs = {"lower": (-0.2, -0.1), "same": (-0.1, 0.0), "higher": (0.01, 0.1)}
    for expected, diff in diffs.items():
        assert verdict({"rougeL_diff_ci": diff}) == expected
    assert verdict({"rougeL_diff_ci": None}) == "same"


def test_intervals_that_include_0_are_not_called_differences():
    said = findings([FULL, timed("uniform:6", (-0.1, 0.02), 1.8, (1.6, 2.0))], 12, 40)
    assert said[0].startswith("uniform:6 cannot be told apart from full depth's ROUGE-L of 0.400")
    assert "−0.100 to 0.020" in said[0] and "beyond chance" not in said[0]
    assert "uniform:6 is the fastest: 1.80 times" in said[1] and "1.60 to 2.00" in said[1]


def test_intervals_that_do_not_include_0_are():
    runs = [
        FULL,
        timed("uniform:3", (-0.3, -0.1), 4.0, (3.9, 4.1)),
        timed("uniform:9", (-0.02, 0.01), 1.3, (1.2, 1.4)),
    ]
    first, second, *_ = findings(runs, 12, 500)
    assert "lower beyond chance is uniform:3 (0.200)" in first
    assert "uniform:9 (0.395) cannot be told apart" in first
    # the fastest of all is not the fastest that keeps the quality
    assert "uniform:9 is the fastest" in second and "uniform:3" not in second
    runs[2] = timed("uniform:9", (0.01, 0.03), 1.3, (1.2, 1.4))
    assert "higher beyond chance is uniform:9" in findings(runs, 12, 500)[0]
    runs[2] = timed("uniform:9", (-0.03, -0.01), 1.3, (1.2, 1.4))
    assert findings(runs, 12, 500)[1].startswith("None keeps the quality, and of all, uniform:3")


@pytest.mark.parametrize(
    ("speedup", "spread", "text"),
    [
        (1.2, (0.9, 1.5), "none is shown to be faster"),
        (0.8, (0.7, 0.9), "none is faster than full depth"),
        (1.5, (1.4, 1.6), "is the fastest"),
    ],
)
def test_rounds_decide_whether_a_gain_is_claimed(speedup, spread, text):
    said = findings([FULL, timed("uniform:9", (-0.02, 0.01), speedup, spread)], 12, 500)
    assert text in said[1]


def test_realisation_is_told_both_ways():
    for realised, text in ((0.8, "up to 25"), (0.99, "takes what the layers that ran make")):
        one = timed("uniform:9", (-0.02, 0.01), 1.5, (1.4, 1.6), realisation=realised)
        assert text in findings([FULL, one], 12, 500)[2]


@pytest.mark.parametrize(("reach", "text"), [(0.05, "overlap)"), (0.001, "do not overlap)")])
def test_a_choice_for_each_prompt_is_judged_by_its_intervals(reach, text):
    runs = [
        FULL,
        run("predictor:/a/b/P", 0.38, reach, mean_layers=6.1),
        run("uniform:6", 0.36, reach),
        run("uniform:3", 0.39, reach, mean_layers=3.0),
    ]
    said = findings(runs, 12, 500)[2]
    assert "predictor:P reaches 0.380 with 6.10" in said and "uniform:6 0.360" in said
    assert said.endswith(f"{text}.") and overlap(runs[1], runs[2]) == (reach == 0.05)


def test_without_time_and_without_policies():
    said = findings([FULL, run("uniform:6", 0.4, rougeL_diff_ci=(-0.1, 0.1))], 12, 1)
    assert "1 prompt:" in said[0] and "no time was measured" in said[1] and "50" in said[2]
    [only] = findings([FULL], 12, 3)
    assert "Only full depth" in only and "0.350 to 0.450" in only


def test_names():
    assert family_of("oracle:0.5@/x/TABLE") == ("oracle", "0.5")
    assert family_of("predictor:/x/P") == ("predictor", "P")
    assert family_of("confidence:margin=0.2") == ("confidence:margin", "0.2")
    names = display_names(["predictor:/x/P", "predictor:/y/P", "oracle:4@/t/T", "uniform:6"])
    assert list(names.values()) == ["predictor:/x/P", "predictor:/y/P", "oracle:4@T", "uniform:6"]
    assert Styles(["uniform"]).of("uniform") == 1 and Styles().of("full") == 0
    assert listed("abcdef", 3) == "a, b and 4 more" and listed("ab") == "a and b"


# -- of a real run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("findings")
    save_checkpoint(directory / "model", num_layers=4)
    save_records(directory / "data.jsonl", 8)
    lines = (directory / "data.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"instruction": "<script>alert(1)</script> say it"}
    (directory / "data.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    return directory


def test_eval_prints_the_path_last_and_resumes_to_the_same_report(place, tmp_path, capsys):
    out = tmp_path / "out put"
    words = f"eval --model {place}/model --data {place}/data.jsonl --template plain".split()
    words += ["--policy", "uniform:2", "--policy", "random-step:2", "--no-timing"]
    words += ["--max-new-tokens", "5", "--output", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-1] == f"report in {out}/report.html"
    before = parse((out / "report.html").read_text())
    shown = [e.words for e in before.all("p") if e.attributes.get("dir") == "auto"]
    assert any("<script>alert(1)</script> say it" in text for text in shown)
    assert not before.all("script") and "'" + str(out) + "'" in before.all("code")[0].words
    assert len(before.all("figure")) == 2
    assert [th.words for th in before.all("tbody")[0].all("th")] == [
        "full",
        "uniform:2",
        "random-step:2",
    ]
    assert main([*words, "--resume"]) == 0
    after = parse((out / "report.html").read_text())
    for name in ("ol", "figure", "table", "details"):
        assert [e.words for e in after.all(name)] == [e.words for e in before.all(name)]
