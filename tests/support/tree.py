"""A copy of the sources as a clone has them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy_tree(names: Iterable[str], target: Path) -> Path:
    """Files and folders of the checkout in a new folder, nothing built; returns it."""
    target.mkdir()
    ignored = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, target / name)
    (target / "README.md").write_text("dynkern\n")
    return target
