"""bench.measure: one benchmark after the other, and a failure that is not lost."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

from bench import measure
from support.benches import invoke


def _invoke(*arguments: str):
    return invoke(measure, *arguments)


def test_each_is_run_once_and_a_failure_does_not_stop_the_others(tmp_path, monkeypatch):
    ran = []

    def run(command, **options):
        ran.append(command[2:])
        return SimpleNamespace(returncode=int("bench.scaling" in command))

    monkeypatch.setattr(measure.subprocess, "run", run)
    result = _invoke("--output", str(tmp_path), "--dry-run")
    assert result.exit_code == 1 and "failed: scaling" in result.output
    steps = [step for _, own in measure.BENCHES.values() for step in own]
    assert [" ".join(words) for words in ran] == [
        f"{words} {trial}".format(output=tmp_path) for words, trial in steps
    ]
    ran.clear()
    assert _invoke("--output", str(tmp_path), "--only", "ops").exit_code == 0
    assert ran == [["dynkern", "bench", "ops", "--output", str(tmp_path)]]


def test_a_trained_model_has_benchmarks_of_its_own_and_a_failed_step_ends_one(
    tmp_path, monkeypatch
):
    ran = []

    def run(command, **options):
        ran.append(command[2])
        return SimpleNamespace(returncode=int("train-predictor" in command))

    monkeypatch.setattr(measure.subprocess, "run", run)
    words = ("--output", str(tmp_path), "--model", "M", "--data", "D")
    result = _invoke(*words, *(w for name in measure.OF_MODEL for w in ("--only", name)))
    assert result.exit_code == 1 and "failed: depths" in result.output
    assert ran == [
        *("dynkern", "bench.keep_eval", "bench.quality", "bench.end_to_end"),
        *("bench.oracle_table", "dynkern", "dynkern"),
    ]


def test_a_model_without_data_is_one_line(tmp_path, capfd):
    result = _invoke("--output", str(tmp_path), "--model", "M")
    assert result.exit_code == 2
    assert "expected both or neither" in result.output + capfd.readouterr().err


def test_what_is_run_exists():
    for _, steps in {**measure.BENCHES, **measure.OF_MODEL}.values():
        for words, _ in steps:
            assert importlib.util.find_spec(words.split()[0])


@pytest.mark.parametrize("name", ["ops_cpu", "all"])
def test_an_unknown_name_is_one_line(tmp_path, name, capfd):
    result = _invoke("--output", str(tmp_path), "--only", name)
    assert result.exit_code == 2
    assert f"--only: got '{name}', expected one of" in result.output + capfd.readouterr().err
