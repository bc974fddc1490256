"""README's pictures are drawn anew from committed results."""

from __future__ import annotations

import re
from pathlib import Path

from bench import figures

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_every_picture_of_readme_is_drawn_from_its_rows(tmp_path):
    assert figures.main([str(tmp_path)]) == 0
    shown = re.findall(r"\]\(bench/results/(\w+)\.png\)", README)
    assert shown and set(shown) <= set(figures.FIGURES)
    for name in shown:
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_arguments_are_one_line(capsys):
    assert figures.main(["a", "b"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_every_results_file_is_told_and_there():
    folder = figures.RESULTS
    told = {}
    for line in (folder / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            told |= dict.fromkeys(re.findall(r"`([\w.]+)`", line.split("|")[1]), line)
    there = {path.name for path in folder.iterdir()} - {"README.md"}
    assert there - set(told) == set()
    missing = set(told) - there
    assert all("not measured yet" in told[name] for name in missing)
