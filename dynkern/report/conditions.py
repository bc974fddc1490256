"""Under what conditions results came about: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dynkern._version import __version__
from dynkern.report.document import Facts

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "triton")


def conditions(known: Facts | None = None) -> dict[str, Any]:
    """Facts for a report: `known` ones first (a value of None is left out), then the machine and
    the versions of what takes part.
    """
    facts = {name: value for name, value in (known or {}).items() if value is not None}
    facts.setdefault("dynkern", __version__)
    facts.setdefault("commit", commit() or "of an installed package, not known")
    facts.setdefault("machine", f"{platform.system()} {platform.machine()}, {_processors()}")
    facts.setdefault("Python", platform.python_version())
    for package in _PACKAGES:
        try:
            facts.setdefault(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            facts.setdefault(package, "not installed")
    facts["written"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return facts


def _processors() -> str:
    count = os.cpu_count() or 0
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return f"{count} processors" + (f", {allowed} of them allowed" if allowed != count else "")


def commit() -> str | None:
    """The checkout's commit, "+" where tracked files differ from it; None outside of a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        said = [
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10
            )
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    if any(done.returncode for done in said):
        return None
    return said[0].stdout.strip() + ("+" if said[1].stdout.strip() else "")
