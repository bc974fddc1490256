"""bench.oracle_table at tiny size: a table filled from nothing beside its possible time."""

from __future__ import annotations

import csv

import pytest

from bench import oracle_table
from dynkern.llm import LLM
from support.benches import invoke, time_once
from support.checkpoint import save_checkpoint, save_records


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    time_once(oracle_table, monkeypatch)


def _invoke(*arguments: str):
    return invoke(oracle_table, *arguments)


def test_dry_run(tmp_path):
    model = save_checkpoint(tmp_path / "model", 4)
    data = save_records(tmp_path / "data.jsonl", 7)
    result = _invoke(
        *("--output", str(tmp_path), "--model", str(model), "--data", str(data), "--dry-run")
    )
    assert result.exit_code == 0, result.output
    with (tmp_path / "oracle_table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["dry_run"], row["prompts"], row["routes"]) == ("1", "3", "4")
    seconds, parts = float(row["seconds"]), ("texts", "losses")
    assert seconds >= sum(float(row[f"{part}_seconds"]) for part in parts) > 0
    possible = sum(float(row[f"{part}_possible"]) for part in parts)
    assert float(row["over_possible"]) == pytest.approx(seconds / possible)
    assert "x its possible time" in result.output


def test_passes_of_the_losses_are_those_that_run(tmp_path, monkeypatch):
    model = save_checkpoint(tmp_path / "model", 4)
    data = save_records(tmp_path / "data.jsonl", 7)
    bench = oracle_table.Bench(LLM(str(model)), str(data), "plain", 7, 8)
    executor, ran = bench.llm.engine.executor, []
    advance = executor.advance

    def counted(batch, *rest):
        alive = batch.alive.nonzero().flatten().tolist()
        results = advance(batch, *rest)
        ran.append((len(alive), int(results[0].ran[:, alive].sum())))
        return results

    monkeypatch.setattr(executor, "advance", counted)
    monkeypatch.setattr(oracle_table, "fill_rows", lambda *arguments: None)
    bench.fill()
    told = [(count.rows, sum(count.layer_rows)) for count in bench.loss_passes()]
    assert told == ran and len(told) > 3


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--dtype", "fp8", "--dtype: got 'fp8', expected one of float32"),
        ("--template", "chat", "--template: got 'chat', expected one of"),
        ("--limit", "0", "--limit: got 0, expected 1 or more"),
        ("--new-tokens", "0", "--new-tokens: got 0, expected 1 or more"),
        ("--repeats", "0", "--repeats: got 0, expected 1 or more"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capfd, argument, value, message):
    result = _invoke(
        "--output", str(tmp_path), "--model", "m", "--data", "d.jsonl", argument, value
    )
    assert result.exit_code == 2
    assert message in result.output + capfd.readouterr().err
    assert not list(tmp_path.iterdir())
