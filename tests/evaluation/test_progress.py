"""Progress where no bar can move: a line a minute, and none on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dynkern.evaluation import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def _watched(clock, terminal: bool) -> list[str]:
    """What stands on the console while 10 steps of 20 seconds are reported."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=40)
    bars = progress.Progressing(console)
    report = bars.task("prompts")
    for done in range(11):
        report(1000 * done, 20000, "full, batch [4]")
        clock[0] += 20
    return file.getvalue().splitlines()


def test_a_file_gets_a_line_a_minute(clock):
    lines = _watched(clock, terminal=False)
    assert len(lines) == 3
    for line, done in zip(lines, ("3,000", "6,000", "9,000"), strict=True):
        assert line.startswith(f"prompts: {done} of 20,000, ")
        assert line.endswith(", full, batch [4]") and "/s, " in line and " left, " in line


def test_a_terminal_has_its_bars(clock):
    assert not any("of 20,000" in line for line in _watched(clock, terminal=True))
