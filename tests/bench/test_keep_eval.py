"""A result of `dynkern eval` is kept with where it comes from: text and synthetic tasks apart."""

from __future__ import annotations

import csv
import json

import pytest

from bench import figures, keep_eval


def save_result(folder, data: str, rouge: float) -> None:
    folder.mkdir()
    run = dict.fromkeys(keep_eval.COLUMNS, 1.5) | {"rougeL_ci": [rouge - 0.1, rouge + 0.1]}
    run |= {"rougeL": rouge, "loaded": False}
    environment = {"device": "a CPU", "isa": "avx2", "dtype": "float32", "executor": "native"}
    meta = {
        "started": "2026-01-02T03:04:05+00:00",
        "prompts": 12,
        "arguments": {"data": data, "batch_size": 4, "max_new_tokens": 8},
        "environment": {**environment, "threads": 2, "torch": "2.13.0"},
    }
    runs = [{**run, "policy": "full"}, {**run, "policy": "uniform:6"}]
    (folder / "results.json").write_text(json.dumps({"meta": meta, "runs": runs}))
    (folder / "curve.png").write_bytes(b"a picture")


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_text_and_tasks_are_kept_apart(tmp_path):
    save_result(tmp_path / "text", "/somewhere/test.jsonl", 0.5)
    save_result(tmp_path / "tasks", "tasks:test", 0.75)
    for name in ("text", "tasks", "tasks"):
        words = [str(tmp_path / name), "/a/path/MODEL", f"{name} of a test", str(tmp_path)]
        assert keep_eval.main(words) == 0
    (text, _), tasks = rows(tmp_path / "eval.csv"), rows(tmp_path / "eval_tasks.csv")
    assert (text["policy"], text["rougeL"], text["rougeL_low"]) == ("full", "0.5", "0.4")
    assert text["device"] == "a CPU, avx2"
    # nothing of somebody's machine
    assert (text["model"], text["data"], text["prompts"]) == ("MODEL", "text of a test", "12")
    assert [row["policy"] for row in tasks] == ["full", "uniform:6"] * 2
    for name in ("eval", "eval_tasks"):
        assert (tmp_path / f"{name}.png").read_bytes() == b"a picture"
        figures.FIGURES[name](rows(tmp_path / f"{name}.csv"), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [[], ["absent", "M", "D"]])
def test_bad_arguments_are_one_line(words, capsys):
    assert keep_eval.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "expected OUTPUT (with results.json), MODEL, DATA" in error
