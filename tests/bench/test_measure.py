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
    folder = ["--output", str(tmp_path)]
    assert ran == [[*words, *folder, *trial] for _, words, trial in measure.BENCHES.values()]
    ran.clear()
    assert _invoke("--output", str(tmp_path), "--only", "ops").exit_code == 0
    assert ran == [["dynkern", "bench", "ops", *folder]]


def test_what_is_run_exists():
    for _, (module, *_), _ in measure.BENCHES.values():
        assert importlib.util.find_spec(module)


@pytest.mark.parametrize("name", ["ops_cpu", "all"])
def test_an_unknown_name_is_one_line(tmp_path, name, capfd):
    result = _invoke("--output", str(tmp_path), "--only", name)
    assert result.exit_code == 2
    assert f"--only: got '{name}', expected one of" in result.output + capfd.readouterr().err
