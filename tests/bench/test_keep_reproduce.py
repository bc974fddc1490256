"""bench.keep_reproduce: claims of a run as rows."""

from __future__ import annotations

import csv
import json

import pytest

from bench import keep_reproduce

REPORT = {
    "arguments": {
        **{"model": "/somewhere/opt", "data": "/somewhere/train.jsonl", "test": None},
        **dict.fromkeys(keep_reproduce.SETTINGS, 7),
    },
    "claims": [
        {"claim": "skipping is closer", "measured": "0.1", "interval": [0.05, 0.2], "holds": "yes"},
        {"claim": "an oracle", "measured": "none", "interval": None, "holds": "not measured"},
    ],
}


def test_every_claim_is_a_row_without_paths(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert keep_reproduce.main([str(tmp_path), "740", str(tmp_path)]) == 0
    text = (tmp_path / "reproduce.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [(r["claim"], r["holds"], r["low"], r["high"]) for r in rows] == [
        ("skipping is closer", "yes", "0.05", "0.2"),
        ("an oracle", "not measured", "", ""),
    ]
    assert {(r["model"], r["data"], r["seconds"]) for r in rows} == {("opt", "train.jsonl", "740")}
    assert "somewhere" not in text


@pytest.mark.parametrize("words", [["{p}"], ["{p}/none", "740"], ["{p}", "long"]])
def test_what_is_no_run_is_refused(tmp_path, words, capsys):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert keep_reproduce.main([word.format(p=tmp_path) for word in words]) == 2
    assert "expected OUTPUT (with report.json), SECONDS" in capsys.readouterr().err
    assert not (tmp_path / "reproduce.csv").exists()
