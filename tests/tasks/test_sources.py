"""The suite as a data source and as a command."""

from __future__ import annotations

import json
import re

import pytest

from dynkern.cli import main
from dynkern.data import load_records
from dynkern.tasks import SOURCE, TaskSource, parse_source, records
from support.errors import one_line_error


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tasks", TaskSource()),
        ("tasks:test", TaskSource("test")),
        ("tasks?seed=3", TaskSource(seed=3)),
        ("tasks:train?family=sort", TaskSource("train", ("sort",))),
        ("tasks:train?family=sort+nth&difficulty=3", TaskSource("train", ("sort", "nth"), (3,))),
        ("tasks:validation?difficulty=1+4&count=7", TaskSource("validation", (), (1, 4), 0, 7)),
    ],
)
def test_names_of_sources(name, expected):
    assert parse_source(name) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tasks:dev", "split: got 'dev', expected one of train, validation, test"),
        ("tasks:", "tasks: names no split, expected tasks:train|validation|test"),
        ("tasks:test?family=sum", "family: got 'sum', expected one of copy, reverse, sort"),
        ("tasks:test?family=", "'family=', expected family=A+B"),
        ("tasks:test?", "has '', expected family=A+B"),
        ("tasks:test?difficulty=5", "difficulty: got 5, expected one of 1, 2, 3, 4"),
        ("tasks:test?difficulty=hard", "'difficulty=hard', expected family=A+B"),
        ("tasks:test?count=0", "count: got 0, expected 1 or more"),
        ("tasks:test?seed=-1", "'seed=-1', expected"),
        ("tasks:test?level=2", "'level=2', expected family=A+B, difficulty=1+2, seed=N or count=N"),
    ],
)
def test_bad_names(name, said):
    with one_line_error(ValueError, re.escape(said)):
        load_records(name)


def test_load_records():
    rows = load_records("tasks:test?family=sort+copy&difficulty=3&seed=2", limit=6)
    assert [r.family for r in rows].count("sort") == 3
    assert {r.difficulty for r in rows} == {3} and {r.source for r in rows} == {SOURCE}
    assert rows[0].id == "test-2-0" and rows[0].references == (rows[0].output,)
    assert len(load_records("tasks:test")) == 1024
    assert len(load_records("tasks:test?count=5")) == 5
    # the caller's split counts where the name has none
    assert load_records("tasks", split="validation", limit=1)[0].id == "validation-0-0"
    assert load_records("tasks:train", split="validation", limit=1)[0].id == "train-0-0"


def test_command_writes_what_the_loader_reads(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    assert main(f"tasks --split test --count 70 --output {path}".split()) == 0
    assert capsys.readouterr().out == f"70 records of test, seed 0, in {path}\n"
    assert load_records(path) == load_records("tasks:test", limit=70)
    content = path.read_bytes()
    assert content.count(b"\n") == 70 and b"\r" not in content
    # the same bytes again, the file replaced
    assert main(f"tasks --split test --count 70 --output {path}".split()) == 0
    assert path.read_bytes() == content


def test_command_filters(tmp_path):
    path = tmp_path / "a.jsonl"
    arguments = (
        f"tasks --seed 9 --count 8 --family slip --family nth --difficulty 2 --output {path}"
    )
    assert main(arguments.split()) == 0
    lines = path.read_text().splitlines()
    stream = records("train", 9, ["slip", "nth"], [2])
    assert [json.loads(line) for line in lines] == [next(stream) for _ in lines]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--split dev", "split: got 'dev'"),
        ("--count 0", "count: got 0"),
        ("--seed -1", "seed: got -1"),
        ("--family sum", "family: got 'sum'"),
        ("--difficulty 5", "difficulty: got 5"),
        ("--output /dev/null/a.jsonl", "output: /dev/null/a.jsonl cannot be written"),
        ("--output {p}/a.json", "output: got {p}/a.json, expected a .jsonl file"),
    ],
)
def test_bad_command(tmp_path, capsys, arguments, said):
    arguments = arguments.format(p=tmp_path)
    if "--output" not in arguments:
        arguments += f" --output {tmp_path}/a.jsonl"
    assert main(["tasks", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert said.format(p=tmp_path) in error and error.count("\n") == 1
    # a refused call leaves no file
    assert not list(tmp_path.iterdir())


def test_fields_of_a_file(tmp_path):
    head = {"instruction": "Say it.", "input": "", "output": "it"}
    path = tmp_path / "a.jsonl"
    levels = [2, "hard", 0.5, None]
    path.write_text("\n".join(json.dumps({**head, "difficulty": v}) for v in levels))
    assert [r.difficulty for r in load_records(path)] == levels
    path.write_text(json.dumps({**head, "difficulty": [1]}))
    with one_line_error(ValueError, "line 1: found .* as difficulty, expected a number or a text"):
        load_records(path)
    path.write_text(json.dumps({**head, "family": 3}))
    with one_line_error(ValueError, "line 1: found 3 as family, expected a text"):
        load_records(path)
    table = tmp_path / "a.csv"
    table.write_text("instruction,input,output,family,difficulty\nSay it.,,it,echo,3\nSay.,,it,,\n")
    assert [(r.family, r.difficulty) for r in load_records(table)] == [("echo", 3), (None, None)]
