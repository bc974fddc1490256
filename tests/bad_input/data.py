"""Rows of the table: data sets."""

from __future__ import annotations

import json
from pathlib import Path

from bad_input.cases import Case, Place
from dynkern.data import load_records

GOOD = {"instruction": "a", "input": "b", "output": "c"}
LINE = json.dumps(GOOD)


def case(
    name: str, content: str | bytes, given: str, expected: str = "expected", line: int | None = 2
) -> Case:
    def call(place: Place, scratch: Path) -> None:
        file = scratch / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        load_records(file)

    # the file's own name and line stand first
    return Case("data" if line is None else f"{name}, line {line}", given, call, expected)


def field(given: str, **changes: object) -> Case:
    return case("a.jsonl", f"{LINE}\n{json.dumps({**GOOD, **changes})}\n", given)


def without(name: str) -> Case:
    record = {k: v for k, v in GOOD.items() if k != name}
    return case("a.jsonl", f"{LINE}\n{json.dumps(record)}\n", f"no {name}", "instruction, input")


CASES = [
    case("a.jsonl", "", "is empty", "at least one record", None),
    case("a.json", "[]", "is empty", "at least one record", None),
    case("a.csv", "instruction,input,output\n", "is empty", "at least one record", None),
    case("a.jsonl", f"{LINE}\n{{broken\n{LINE}\n", "broken JSON", "one JSON object a line"),
    case("a.jsonl", f"{LINE}\n{LINE}{LINE}\n", "broken JSON", "one JSON object a line"),
    case("a.jsonl", f"{LINE}\n[1]\n", "a list", "an object"),
    case("a.jsonl", f"{LINE}\nnull\n", "null", "an object"),
    case("a.jsonl", f"{LINE}\n{'[' * 100_000}\n", "broken JSON"),
    case("a.jsonl", f"{LINE}\n{'9' * 5000}\n", "broken JSON"),
    case("a.jsonl", f"{LINE}\n".encode() + LINE.encode()[:-3] + b"\xff\n", "byte 0xff", "UTF-8"),
    case("a.jsonl", b"\xff\xfe" + LINE.encode("utf-16-le"), "byte 0xff", "UTF-8", 1),
    case("a.json", f"[\n{LINE}\n{LINE}]", "'{'", "',' or ']'", 3),
    case("a.json", f"\n{LINE}", "'{'", ".jsonl"),
    case("a.json", f"[{LINE},\n{{broken]", "broken JSON", "a list of JSON objects"),
    case("a.csv", "instruction,output\na,b\n", "columns instruction, output", "input", 1),
    case("a.csv", "instruction,input,output\na,b\n", "2 cells", "3"),
    case("a.csv", 'instruction,input,output\na,"b,c\n', "broken CSV"),
    without("instruction"),
    without("input"),
    without("output"),
    field("3 as instruction", instruction=3),
    field("null as input", input=None),
    field("a list as output", output=["c"]),
    field("blank instruction and input", instruction=" ", input=""),
    field("half a surrogate pair in input", input="\ud800"),
    field("a text as references", references="c"),
    field("an empty list as references", references=[]),
    field("null as references", references=["c", None]),
    field("1.5 as id", id=1.5),
    field("'0' again", id="0"),
    field("3 as source", source=3),
]
