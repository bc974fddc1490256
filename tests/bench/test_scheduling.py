"""bench.scheduling at tiny size: static against refilled slots, fifo against cohort."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bench import scheduling
from dynkern.llm import LLM
from support.benches import invoke, time_once
from support.checkpoint import save_checkpoint, save_records

CASES = {
    "static / continuous",
    "fifo / cohort, uniform:2",
    "fifo / cohort, bimodal 1 and 4",
    "fifo / cohort, nested 1, 2 and 4",
    "fifo / cohort, spread 1..4",
    "fifo / cohort, random:2",
}


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    time_once(scheduling, monkeypatch)


def _invoke(*arguments: str):
    return invoke(scheduling, *arguments)


def _rows(folder):
    with (folder / "scheduling.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_dry_run(tmp_path):
    result = _invoke("--output", str(tmp_path), "--dry-run")
    assert result.exit_code == 0, result.output
    rows = _rows(tmp_path)
    for batch in ("2", "3"):
        assert {row["case"] for row in rows if row["batch"] == batch} == CASES
    for row in rows:
        assert row["dry_run"] == "1" and row["requests"] == "12" and row["model"] == "tiny"
        assert row["lengths"].startswith("geometric, mean ")
        for key in ("seconds", "speedup", "speedup_decode", "predicted_decode", "realisation"):
            assert float(row[key]) > 0
        assert {row["auto_roofline"], row["auto_measured"]} <= {"fifo", "cohort"}
        assert (row["expected_measured"] != "") == ("1" in row["case"] or "random" in row["case"])
        assert (row["promised"] != "") == (row["expected_measured"] != "")
        assert float(row["base_seconds"]) > float(row["base_seconds_decode"])
        if row["promised"]:
            # prefill gains nothing
            gains = float(row["promised"]) - 1, float(row["expected_measured"]) - 1
            assert gains[0] * gains[1] >= 0 and abs(gains[0]) <= abs(gains[1])


def test_refilled_slots_need_fewer_passes(tmp_path):
    llm = LLM(save_checkpoint(tmp_path / "model", 4))
    bench = scheduling.Bench(llm, scheduling.random_work(llm, 12, 20), 3, 1)
    static, refilled = (bench.run("full", "fifo", static=static)() for static in (True, False))
    rows = [sum(count.rows for count in ran.passes) for ran in (static, refilled)]
    assert rows[0] == rows[1] and len(refilled.passes) < len(static.passes)


def _only_row(folder: Path, *words: str) -> tuple[dict[str, str], str]:
    """The row of a dry run at 2 rows, and what it printed."""
    result = _invoke("--output", str(folder), "--dry-run", "--batch", "2", *words)
    assert result.exit_code == 0, result.output
    (row,) = _rows(folder)
    return row, result.output


def test_natural_lengths_of_a_model_on_data(tmp_path):
    model = save_checkpoint(tmp_path / "model", 4)
    data = save_records(tmp_path / "data.jsonl", 7)
    row, output = _only_row(
        *(tmp_path, "--model", str(model), "--data", str(data)),
        *("--group", "continuous", "--dtype", "float32"),
    )
    assert row["requests"] == "7" and row["model"] == "model"
    assert row["lengths"].startswith("natural, mean ")
    assert f"static / continuous: {float(row['speedup']):.3f}, wanted 1.3: " in output


def test_lengths_of_another_model(tmp_path):
    other = save_checkpoint(tmp_path / "other", 4)
    data = save_records(tmp_path / "data.jsonl", 7)
    row, _ = _only_row(
        *(tmp_path, "--lengths-of", str(other), "--data", str(data)),
        *("--group", "cohort", "--mix", "nested"),
    )
    assert row["requests"] == "7" and row["model"] == "tiny"
    assert row["case"] == "fifo / cohort, nested 1, 2 and 4"
    assert row["lengths"].startswith("natural, mean ") and row["lengths"].endswith(", of other")


@pytest.mark.parametrize(
    ("group", "promised", "speedup", "least", "said"),
    [
        ("continuous", "", 1.31, 1.3, "held"),
        ("continuous", "", 1.29, 1.3, "missed"),
        ("cohort", 1.15, 1.16, 1.15, "held"),
        ("cohort", 1.4, 1.14, 1.15, "missed"),
        ("cohort", 1.14, 0.99, 0.98, "held"),
        ("cohort", 1.0, 0.97, 0.98, "missed"),
        ("cohort", "", 0.97, 0.98, "missed"),
    ],
)
def test_verdict(group, promised, speedup, least, said):
    row = {"group": group, "expected_measured": promised, "speedup": speedup}
    assert (scheduling.wanted(row), scheduling.verdict(row)) == (least, said)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--group", "speed", "--group: got 'speed', expected one of continuous, cohort"),
        ("--mix", "zipf", "--mix: got 'zipf', expected one of uniform, bimodal"),
        ("--shape", "7b", "--shape: got '7b', expected one of tiny"),
        ("--dtype", "fp8", "--dtype: got 'fp8', expected one of float32"),
        ("--template", "chat", "--template: got 'chat', expected one of"),
        ("--data", "x.jsonl", "--data: got it without --model or --lengths-of"),
        ("--lengths-of", "m", "--lengths-of: expected --data with it, and no --model"),
        ("--batch", "0", "--batch: got 0, expected more"),
        ("--requests", "0", "--requests: got 0, expected more"),
        ("--new-tokens", "3", "--new-tokens: got 3, expected more"),
        ("--repeats", "0", "--repeats: got 0, expected more"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capfd, argument, value, message):
    result = _invoke("--output", str(tmp_path), argument, value)
    assert result.exit_code == 2
    assert message in result.output + capfd.readouterr().err
    assert not (tmp_path / "scheduling.csv").exists()
