"""Benchmarks with a typer `main`, run in this process at tiny size."""

from __future__ import annotations

from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner, Result

from dynkern.evaluation.timing import interleave


def invoke(module: ModuleType, *arguments: str) -> Result:
    """The benchmark's command line."""
    app = typer.Typer()
    app.command()(module.main)
    return CliRunner().invoke(app, list(arguments))


def time_once(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of one call, whatever else the machine does: what is timed is not looked at."""
    monkeypatch.setattr(
        module,
        "interleave",
        lambda cases, repeats: interleave(cases, repeats, min_window=0.0, limit=1e9),
    )
