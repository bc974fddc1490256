"""samples.jsonl: resumes after any kill, refuses what it must not mix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynkern.evaluation.samples import ROW_KEYS, SampleStore
from support.errors import one_line_error

PRINT = {"model": {"name": "tiny", "layers": 6}, "dtype": "float32", "limit": None}
ORDER = [str(i) for i in range(6)]


def row(policy: str, prompt_id: str, text: str = "naïve 東京 \u2028 \n") -> dict:
    return {
        "policy": policy,
        "prompt_id": prompt_id,
        "text": text,
        "token_ids": [5, 6, 2],
        "rouge1": 0.5,
        "rouge2": 0.25,
        "rougeL": 0.5,
        "new_tokens": 3,
        "mean_layers": 4.5,
        "layer_counts": [2, 2, 1, 1, 1, 2],
        "stop_reason": "eos",
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "samples.jsonl"


@pytest.fixture
def filled(path: Path) -> Path:
    with SampleStore(path, PRINT, order=ORDER) as store:
        store.append([row("full", "0"), row("full", "1")])
        store.append([row("uniform:3", "0")])
    return path


def resume(path: Path, fingerprint: dict | None = None) -> SampleStore:
    return SampleStore(path, fingerprint or PRINT, resume=True, order=ORDER)


def test_what_is_written_is_read(filled):
    lines = filled.read_bytes().split(b"\n")
    assert json.loads(lines[0]) == {"kind": "header", "fingerprint": PRINT}
    assert [json.loads(line) for line in lines[1:-1]] == [
        row("full", "0"),
        row("full", "1"),
        row("uniform:3", "0"),
    ]
    assert set(json.loads(lines[1])) == set(ROW_KEYS)
    with resume(filled) as store:
        assert store.rows("full") == [row("full", "0"), row("full", "1")]
        assert store.done("full") == {"0", "1"} and store.done("uniform:3") == {"0"}
        assert store.done("random:3") == set() and store.rows("random:3") == []


def test_rows_come_in_data_order(path):
    with SampleStore(path, PRINT, order=ORDER) as store:
        store.append([row("full", "4"), row("full", "0")])
        assert [r["prompt_id"] for r in store.rows("full")] == ["0", "4"]
        store.append(row("full", i) for i in ("5", "2"))
        assert [r["prompt_id"] for r in store.rows("full")] == ["0", "2", "4", "5"]
    with SampleStore(path, PRINT, resume=True) as store:
        assert [r["prompt_id"] for r in store.rows("full")] == ["4", "0", "5", "2"]


def test_resume_appends_and_allows_further_policies(filled):
    before = filled.read_bytes()
    with resume(filled) as store:
        store.append([row("early_exit:2", "0"), row("full", "2")])
        store.append([])
    assert filled.read_bytes().startswith(before)
    with resume(filled) as store:
        assert store.done("full") == {"0", "1", "2"} and store.done("early_exit:2") == {"0"}


def test_resume_of_nothing_starts(path):
    with resume(path) as store:
        store.append([row("full", "0")])
    with resume(path) as store:
        assert store.done("full") == {"0"}


def test_without_resume_rows_are_not_overwritten(filled):
    before = filled.read_bytes()
    for fingerprint in (PRINT, {"dtype": "float16"}):
        with one_line_error(ValueError, "already holds samples.*--resume.*another --output"):
            SampleStore(filled, fingerprint)
    assert filled.read_bytes() == before


@pytest.mark.parametrize("resuming", [False, True])
@pytest.mark.parametrize("torn", ["", '{"ki', '{"kind": "header", "fing', None])
def test_a_file_without_rows_is_begun_anew(path, resuming, torn):
    path.parent.mkdir()
    header = json.dumps({"kind": "header", "fingerprint": {"dtype": "other"}}) + "\n"
    path.write_text(header if torn is None else torn)
    with SampleStore(path, PRINT, resume=resuming) as store:
        store.append([row("full", "0")])
    lines = path.read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[0])["fingerprint"] == PRINT and len(lines) == 3


def test_every_torn_end_loses_only_its_row(filled, tmp_path):
    content = filled.read_bytes()
    start = content.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(start, len(content) + 1):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(content[:cut])
        with resume(torn) as store:
            assert store.done("full") == {"0", "1"}
            whole = cut == len(content)
            assert store.done("uniform:3") == ({"0"} if whole else set())
            if not whole:
                store.append([row("uniform:3", "0")])
        assert torn.read_bytes() == content


def test_garbage_after_a_power_cut_is_dropped(filled):
    content = filled.read_bytes()
    for garbage in (b"\0" * 300, b'{"policy": "full"}\n', b"\xff\n"):
        filled.write_bytes(content + garbage)
        with resume(filled) as store:
            assert store.done("full") == {"0", "1"}
        assert filled.read_bytes() == content


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"{broken", "no JSON"),
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[1]", "no object"),
        (b'{"policy": "full"}', "no prompt_id"),
        (json.dumps({**row("full", "9"), "prompt_id": 9}).encode(), "prompt_id is 9"),
        (json.dumps(row("full", "0")).encode(), "full for prompt '0' a second time"),
    ],
)
def test_a_broken_row_in_the_middle(filled, broken, reason):
    lines = filled.read_bytes().split(b"\n")
    lines.insert(2, broken)
    content = b"\n".join(lines)
    if b'"0"' in broken:
        content = b"\n".join([*lines[:2], broken, *lines[3:]])
    filled.write_bytes(content)
    with one_line_error(ValueError, rf"samples\.jsonl, line 3: found a broken row \(.*{reason}"):
        resume(filled)
    assert filled.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        b"my own notes",
        b"my own notes\nmore\n",
        b'{"text": "other"}\n',
        b'{"kind": "header"}\n',
        b'{"kind": "header", "fingerprint": 3}\n{}\n',
        b"[]\n",
        b"\xff\xfe\n",
    ],
)
@pytest.mark.parametrize("resuming", [False, True])
def test_a_foreign_file_is_left_alone(path, content, resuming):
    path.parent.mkdir()
    path.write_bytes(content)
    with one_line_error(ValueError, "line 1: found no header"):
        SampleStore(path, PRINT, resume=resuming)
    assert path.read_bytes() == content


def test_another_fingerprint_names_the_keys(filled):
    before = filled.read_bytes()
    other = {**PRINT, "dtype": "bfloat16", "model": {"name": "tiny", "layers": 12}}
    with one_line_error(ValueError, "other settings: model.layers .6 then, 12 now., dtype"):
        resume(filled, other)
    with one_line_error(ValueError, "seed .not stated then, 0 now"):
        resume(filled, {**PRINT, "seed": 0})
    with one_line_error(ValueError, "limit .None then, not stated now"):
        resume(filled, {k: v for k, v in PRINT.items() if k != "limit"})
    with one_line_error(ValueError, "--output"):
        resume(filled, {**PRINT, "model": {"name": "x" * 200, "layers": 6}})
    assert filled.read_bytes() == before


def test_fingerprints_are_compared_as_json(path):
    with SampleStore(path, {"exits": (0, 1), "at": {1: "a"}}) as store:
        store.append([row("full", "0")])
    with SampleStore(path, {"at": {"1": "a"}, "exits": [0, 1]}, resume=True) as store:
        assert store.done("full") == {"0"}


def test_rows_of_prompts_that_are_not_in_the_data(filled):
    with one_line_error(ValueError, "has prompt '1', which is not in the data"):
        SampleStore(filled, PRINT, resume=True, order=["0", "2"])
    with resume(filled) as store, one_line_error(ValueError, "prompt '77'"):
        store.append([row("full", "77")])


def test_a_bad_batch_writes_nothing(filled):
    before = filled.read_bytes()
    incomplete = {k: v for k, v in row("full", "3").items() if k != "text"}
    bad = [
        (incomplete, "no text"),
        (row("full", "1"), "full for prompt '1' twice"),
        (row("full", "2"), "full for prompt '2' twice"),
        ({**row("full", "3"), "rougeL": float("nan")}, "not JSON compliant"),
    ]
    with resume(filled) as store:
        for last, match in bad:
            with one_line_error(ValueError, match):
                store.append([row("full", "2"), last])
            assert store.done("full") == {"0", "1"}
    assert filled.read_bytes() == before


def test_a_write_that_fails_midway_leaves_no_torn_row(filled, monkeypatch):
    before = filled.read_bytes()
    with resume(filled) as store:
        with monkeypatch.context() as patch:

            def full_disk(descriptor: int) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, "fsync", full_disk)
            with pytest.raises(OSError, match="No space"):
                store.append([row("full", "2")])
        assert filled.read_bytes() == before
        store.append([row("full", "2")])
        assert store.rows("full")[-1] == row("full", "2")


def test_two_processes_do_not_share_a_file(filled):
    pytest.importorskip("fcntl")
    with resume(filled), one_line_error(ValueError, "being written by another process"):
        resume(filled)
    with resume(filled) as store:
        assert store.done("full") == {"0", "1"}


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from dynkern.evaluation.samples import ROW_KEYS, SampleStore
store = SampleStore(sys.argv[1], {"a": 1}, resume=True)
at = len(store.done("full"))
while True:
    row = dict.fromkeys(ROW_KEYS) | {"policy": "full"}
    store.append(row | {"prompt_id": str(at + i)} for i in range(4))
    at += 4
    print(at, flush=True)
"""


def test_kill_loses_only_rows_in_flight(path):
    root = str(Path(__file__).resolve().parents[2])
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), root], stdout=subprocess.PIPE, text=True
        )
        reported = [int(writer.stdout.readline()) for _ in range(5)]
        writer.send_signal(signal.SIGKILL)
        reported += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
        writer.wait()
        with SampleStore(path, {"a": 1}, resume=True) as store:
            ids = [r["prompt_id"] for r in store.rows("full")]
        assert len(ids) >= reported[-1]
        assert ids == [str(i) for i in range(len(ids))]
