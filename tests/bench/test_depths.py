"""bench.depths at tiny size: what it runs, that its numbers hang together, what it refuses."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from bench import depths
from bench.depths_cases import Case, uniform_mix
from dynkern.allocation.table import load_table
from dynkern.cli import main
from support.benches import invoke, time_once
from support.checkpoint import save_checkpoint, save_records

LAYERS = 4


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    time_once(depths, monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depths")
    save_checkpoint(folder / "model", num_layers=LAYERS)
    save_records(folder / "data.jsonl", 60)
    words = f"oracle --model {folder}/model --data {folder}/data.jsonl --template plain"
    words += f" --no-losses --max-new-tokens 6 --output {folder}/table"
    assert main(words.split()) == 0
    words = f"train-predictor {folder}/table --output {folder}/predictor --train-share 0.6"
    assert main(words.split()) == 0
    return folder


def _invoke(place, output, *more: str):
    given = {
        "--model": place / "model",
        "--data": place / "data.jsonl",
        "--table": place / "table",
        "--output": output,
    }
    given |= dict(zip(more[::2], more[1::2], strict=True))
    flat = [str(word) for pair in given.items() for word in pair]
    return invoke(depths, *flat, "--dry-run")


def test_dry_run(place, tmp_path):
    result = _invoke(place, tmp_path, "--predictor", str(place / "predictor"))
    assert result.exit_code == 0, result.output
    with (tmp_path / "depths.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    targets = ("oracle:equal", "oracle:0.5", "predictor")
    for batch, schedules in (("1", ["fifo"]), ("3", ["fifo", "cohort"])):
        wanted = {("full", "", "fifo")}
        for target in targets:
            wanted |= {("allocation", target, schedule) for schedule in schedules}
            wanted |= {("same at random", target, schedules[-1]), ("uniform", target, "fifo")}
        for lengths in ("natural", "forced"):
            mine = [r for r in rows if (r["batch"], r["lengths"]) == (batch, lengths)]
            assert {(r["way"], r["target"], r["schedule"]) for r in mine} == wanted
            assert len(mine) == len(wanted)
    for row in rows:
        assert row["dry_run"] == "1" and row["prompts"] == "8"
        for key in ("seconds", "speedup", "speedup_decode", "possible_decode", "share"):
            assert float(row[key]) > 0
        assert float(row["mean_layers"]) <= float(row["mean_union"]) + 1e-9 <= LAYERS + 1e-6
        if row["lengths"] == "forced":
            assert row["rougeL"] == row["verdict"] == "" and float(row["mean_tokens"]) == 6
    forced = [row for row in rows if row["lengths"] == "forced"]
    for target in targets:
        # of equal lengths, so that means over tokens are means over sequences
        mine = [float(row["mean_layers"]) for row in forced if row["target"] == target]
        assert max(mine) - min(mine) < 0.5 / 8 + 1e-9
        texts = {
            row["rougeL"]
            for row in rows
            if (row["target"], row["way"], row["lengths"]) == (target, "allocation", "natural")
        }
        assert len(texts) == 1  # whatever company the rows keep
    # allocated among the very prompts that are run, so it is as good as full depth
    equal = [r for r in rows if (r["way"], r["target"]) == ("allocation", "oracle:equal")]
    for row in equal:
        if row["lengths"] == "natural":
            assert float(row["rougeL"]) >= float(row["rougeL_full"]) - 1e-9
            assert row["verdict"] == ("held" if float(row["share"]) >= 0.9 else "missed")
    assert "oracle:equal, cohort, 3 rows: ROUGE-L" in result.output.replace("\n", " ")


def test_verdict():
    case = Case("allocation", "oracle:equal", None, "fifo")
    assert depths.verdict(case, 0.91, 0.3, 0.3) == "held"
    assert depths.verdict(case, 0.89, 0.3, 0.3) == "missed"
    assert depths.verdict(case, 0.89, 0.2, 0.3) == ""
    assert depths.verdict(Case("uniform", "oracle:equal", None, "fifo"), 0.1, 0.3, 0.3) == ""


def test_uniform_routes_at_the_mean_of_others():
    for budgets in ([1, 1, 4, 1], [4, 4], [2, 3, 3], [1, 2, 1, 4, 4, 3, 2]):
        own = [tuple(i < budget for i in range(4)) for budget in budgets]
        mixed = [int(route.sum()) for route in uniform_mix(4, own).table]
        assert len(mixed) == len(own) and max(mixed) - min(mixed) <= 1
        assert sum(mixed) == sum(budgets)


def test_part_of_a_table(place):
    table = load_table(place / "table")
    rows = np.array([5, 2, 9])
    part = table.part(rows)
    assert part.ids == [table.ids[row] for row in rows]
    assert part.digests == [table.digests[row] for row in rows]
    assert np.array_equal(part.quality, table.quality[rows])
    assert np.array_equal(part.states, table.states[rows])


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--batch", "0", "--batch: got 0, expected 1 or more"),
        ("--prompts", "0", "--prompts: got 0, expected 1 or more"),
        ("--repeats", "0", "--repeats: got 0, expected 1 or more"),
        ("--dtype", "fp8", "--dtype: got 'fp8', expected one of float32"),
        ("--table", "{p}/absent", "table: no file {p}/absent"),
        ("--predictor", "{p}/absent", "predictor: no file {p}/absent"),
        ("--budget", "5", "budget: got '5', expected mean layers from 1 to 4"),
        ("--model", "{p}/other", "table.sqlite was made with another model (weights ("),
        ("--data", "{p}/others.jsonl", "--data: none of its 3 prompts are in the table"),
    ],
)
def test_bad_arguments_are_one_line(place, tmp_path, capfd, argument, value, message):
    if argument == "--model" and not (place / "other").exists():
        save_checkpoint(place / "other", num_layers=LAYERS, seed=5)
    if argument == "--data":
        lines = (place / "data.jsonl").read_text().replace('"instruction": "', '"instruction": "x ')
        (place / "others.jsonl").write_text("\n".join(lines.splitlines()[:3]))
    result = _invoke(place, tmp_path, argument, value.format(p=place))
    said = result.output + capfd.readouterr().err
    assert result.exit_code == 2 and message.format(p=place) in said, said
    assert not (tmp_path / "depths.csv").exists()
