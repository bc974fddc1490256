"""Records from files and from the hub, and every way in which a file can be wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pytest

from dynkern.data import Record, alpaca_indices, load_records
from support.errors import one_line_error

RECORDS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": 'Say "hi",\nthen go.', "input": "", "output": "hi\u2028there"},
    {"instruction": "Übersetze", "input": "東京 😀", "output": "Tokyo"},
]


def write(path: Path, records: list[dict]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    elif path.suffix == ".jsonl":
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for r in records for k in r)))
            writer.writeheader()
            for record in records:
                cells = {k: json.dumps(v) if k == "references" else v for k, v in record.items()}
                writer.writerow(cells)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "A.JSONL"])
def test_formats_give_the_same_records(tmp_path, name):
    records = load_records(write((tmp_path / name.lower()), RECORDS).rename(tmp_path / name))
    assert records == [
        Record(str(i), references=(r["output"],), source=None, **r) for i, r in enumerate(RECORDS)
    ]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_optional_fields(tmp_path, suffix):
    rows = [
        {**RECORDS[0], "id": "x", "references": ["three", "3"], "source": "sums"},
        {**RECORDS[1], "id": 7, "references": ["hi"], "source": "talk"},
    ]
    records = load_records(write(tmp_path / f"a{suffix}", rows))
    assert [r.id for r in records] == ["x", "7"]
    assert [r.references for r in records] == [("three", "3"), ("hi",)]
    assert [r.source for r in records] == ["sums", "talk"]


def test_absent_optional_cells_of_a_csv_are_absent(tmp_path):
    rows = [{**RECORDS[0], "id": "x", "references": ["three"]}, RECORDS[1]]
    records = load_records(write(tmp_path / "a.csv", rows))
    assert records[1].id == "1"
    assert records[1].references == (RECORDS[1]["output"],)


def test_limit_takes_the_first_and_reads_no_further(tmp_path):
    path = write(tmp_path / "a.jsonl", RECORDS)
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    assert [r.id for r in load_records(path, limit=2)] == ["0", "1"]
    with one_line_error(ValueError, "line 4"):
        load_records(path, limit=4)


def test_a_split_does_not_touch_a_local_file(tmp_path):
    path = write(tmp_path / "a.json", RECORDS)
    assert load_records(path, split="train") == load_records(path, split="test")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_byte_order_mark_and_windows_line_ends(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", [RECORDS[0], RECORDS[2]])
    content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert [r.input for r in load_records(path)] == ["1, 2", "東京 😀"]


def test_empty_output_is_a_record(tmp_path):
    (record,) = load_records(write(tmp_path / "a.jsonl", [{**RECORDS[0], "output": ""}]))
    assert record.output == "" and record.references == ("",)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_missing_file(tmp_path, suffix):
    with one_line_error(FileNotFoundError, f"no file .*absent{suffix}, expected"):
        load_records(tmp_path / f"absent{suffix}")


@pytest.mark.parametrize("name", ["absent.txt", "./absent", "a/b/c", "~/data"])
def test_a_name_that_is_no_hub_id_is_a_missing_file(name):
    with one_line_error(FileNotFoundError, "no file"):
        load_records(name)


@pytest.mark.parametrize(
    ("name", "found"), [("a.txt", "extension '.txt'"), ("a", "no extension"), ("d", "is a folder")]
)
def test_unknown_kind_of_file(tmp_path, name, found):
    (tmp_path / "d").mkdir()
    if name != "d":
        (tmp_path / name).write_text("x")
    with one_line_error(ValueError, rf"{name} (has )?{found}, expected .*\.json, \.jsonl, \.csv"):
        load_records(tmp_path / name)


def test_empty_name():
    with one_line_error(ValueError, "empty name"):
        load_records("")


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one(tmp_path, limit):
    with one_line_error(ValueError, f"limit: got {limit}, expected 1 or more"):
        load_records(write(tmp_path / "a.json", RECORDS), limit=limit)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", ""),
        ("a.json", " \n"),
        ("a.json", "[]"),
        ("a.json", "[ \n ]\n"),
        ("a.jsonl", ""),
        ("a.jsonl", "\n\n"),
        ("a.csv", ""),
        ("a.csv", "instruction,input,output\n"),
    ],
)
def test_empty_data(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with one_line_error(ValueError, f"{name} is empty"):
        load_records(tmp_path / name)


GOOD = json.dumps(RECORDS[0])
TWO = f"[\n{GOOD},\n{GOOD}"
BROKEN = [
    ("a.jsonl", f"{GOOD}\n{{broken\n{GOOD}\n", "line 2: found broken JSON .*column 2"),
    ("a.jsonl", f"\n{GOOD}\n\n{GOOD[:-5]}\n", "line 4: found broken JSON"),
    ("a.jsonl", f"{GOOD}{GOOD}\n", r"line 1: found broken JSON \(Extra data"),
    ("a.jsonl", '{"instruction": ' + "9" * 5000 + "}", "line 1: found broken JSON"),
    ("a.jsonl", "[" * 100_000, "line 1: found broken JSON"),
    ("a.jsonl", f"{GOOD}\n[1]\n", "line 2: found a list, expected an object"),
    ("a.jsonl", "3\n", "line 1: found 3, expected an object"),
    ("a.jsonl", "null\n", "line 1: found null, expected an object"),
    ("a.jsonl", "[\n", "line 1: found broken JSON"),
    ("a.json", f"{TWO},\n{{broken}}]", "line 4: found broken JSON"),
    ("a.json", f'{TWO},\n{{"instruction":\n\n"a" "b"}}]', "line 6: found broken JSON"),
    ("a.json", f"{TWO}\n", "line 4: found the end of the file, expected ',' or ']'"),
    ("a.json", f"{TWO}\n{GOOD}]", "line 4: found '{', expected ',' or ']'"),
    ("a.json", f"{TWO},\n]", "line 4: found ']', expected an object"),
    ("a.json", f"{TWO}]\n\n{{}}", "line 5: found '{', expected nothing after the list"),
    ("a.json", f"{TWO},\n7]", "line 4: found 7, expected an object"),
    ("a.json", GOOD, r"line 1: found '\{', expected '\['.*\.jsonl"),
    ("a.json", f"\n{GOOD}\n{GOOD}\n", r"line 2: found '\{', expected '\['"),
    ("a.json", "[" * 100_000, "line 1: found broken JSON"),
    ("a.csv", "instruction,output\na,b\n", "line 1: found columns instruction, output, expected"),
    ("a.csv", "instruction,input,input,output\n", "line 1: found columns .* each once"),
    ("a.csv", "instruction,input,output\na,b,c\na,b\n", "line 3: found 2 cells, expected 3"),
    ("a.csv", 'instruction,input,output\n"a\nb",b,c\na,b,c,d\n', "line 4: found 4 cells"),
    ("a.csv", 'instruction,input,output\na,b,c\na,"b,c\n', "line 3: found broken CSV"),
    ("a.csv", 'instruction,input,output\na,"b"x,c\n', "line 2: found broken CSV"),
    ("a.csv", '"a\nb",c\n', "line 1: found columns a b, c, expected"),
    (
        "a.csv",
        "instruction,input,output,references\na,b,c,[x]\n",
        "line 2: found broken JSON .* expected a JSON list of texts as references",
    ),
]


@pytest.mark.parametrize(("name", "content", "match"), BROKEN)
def test_broken_files(tmp_path, name, content, match):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with one_line_error(ValueError, f"{name}, {match}"):
        load_records(tmp_path / name)


WRONG = [
    ({"input": None}, "found null as input, expected a text"),
    ({"instruction": 3}, "found 3 as instruction, expected a text"),
    ({"output": ["a"]}, "found a list as output, expected a text"),
    ({"output": True}, "found True as output, expected a text"),
    ({"instruction": " ", "input": "\n"}, "found blank instruction and input"),
    ({"input": "\ud800"}, "found half a surrogate pair in input"),
    ({"references": "3"}, "found a text as references, expected a list"),
    ({"references": []}, "found an empty list as references"),
    ({"references": ["3", None]}, "found null as references, expected a text"),
    ({"references": {"a": "b"}}, "found an object as references"),
    ({"id": 1.5}, "found 1.5 as id"),
    ({"id": True}, "found True as id"),
    ({"id": ""}, "found an empty text as id"),
    ({"id": ["a"]}, "found a list as id"),
    ({"source": 3}, "found 3 as source, expected a text"),
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(("change", "match"), WRONG)
def test_wrong_fields(tmp_path, suffix, change, match):
    lines = [json.dumps(r) for r in (RECORDS[0], {**RECORDS[0], **change})]
    joined = ",\n".join(lines).join("[]") if suffix == ".json" else "\n".join(lines)
    (tmp_path / f"a{suffix}").write_text(joined)
    with one_line_error(ValueError, f"a{suffix}, line 2: {match}"):
        load_records(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("missing", ["instruction", "input", "output"])
def test_missing_field(tmp_path, missing):
    record = {k: v for k, v in RECORDS[0].items() if k != missing}
    path = write(tmp_path / "a.jsonl", [RECORDS[0], record])
    with one_line_error(ValueError, f"line 2: found no {missing} .*expected instruction, input"):
        load_records(path)


def test_duplicate_ids(tmp_path):
    rows = [{**RECORDS[0], "id": "x"}, RECORDS[1], {**RECORDS[2], "id": "x"}]
    path = write(tmp_path / "a.jsonl", rows)
    with one_line_error(ValueError, "line 3: found id 'x' again .*line 1"):
        load_records(path)
    # an index that somebody else has as id
    path = write(tmp_path / "b.jsonl", [{**RECORDS[0], "id": "1"}, RECORDS[1]])
    with one_line_error(ValueError, "line 2: found id '1' again"):
        load_records(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_broken_utf8(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", [RECORDS[0], RECORDS[0]])
    before = path.read_bytes()
    at = before.rindex(b"Add.")
    path.write_bytes(before[:at] + b"\xff" + before[at:])
    line = before.count(b"\n", 0, at) + 1
    with one_line_error(ValueError, f"line {line}: found byte 0xff, expected UTF-8"):
        load_records(path)


def test_alpaca_split_is_that_of_the_paper():
    parts = {name: alpaca_indices(52_002, name) for name in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [36_401, 7_800, 7_801]
    assert sorted(sum(parts.values(), [])) == list(range(52_002))
    data = datasets.Dataset.from_dict({"n": range(52_002)}).train_test_split(0.3, seed=42)
    assert parts["train"] == data["train"]["n"][:]
    assert parts["test"] == data["test"].train_test_split(0.5, seed=42)["test"]["n"][:]
    # pinned: a release of datasets that shuffled otherwise would move the test set
    assert parts["test"][:5] == [34978, 18381, 41971, 7877, 14559]


def test_alpaca_split_of_few_or_of_an_unknown_part():
    assert [len(alpaca_indices(4, name)) for name in ("train", "validation", "test")] == [2, 1, 1]
    with one_line_error(ValueError, "at least 4"):
        alpaca_indices(3, "test")
    with one_line_error(ValueError, "split: got 'dev', expected one of train, validation, test"):
        alpaca_indices(10, "dev")


def fake_hub(monkeypatch, answers: dict[tuple[str, str], datasets.Dataset]) -> None:
    def load_dataset(name: str, split: str) -> datasets.Dataset:
        return answers[name, split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_hub_alpaca_is_split(monkeypatch):
    rows = [
        {"instruction": f"Do {i}.", "input": "", "output": f"{i}", "text": ""} for i in range(40)
    ]
    data = datasets.Dataset.from_list(rows)
    fake_hub(monkeypatch, {("tatsu-lab/alpaca", "train"): data})
    for split in ("train", "validation", "test"):
        records = load_records("tatsu-lab/alpaca", split)
        assert [int(r.id) for r in records] == alpaca_indices(40, split)
        assert [r.output for r in records] == [r.id for r in records]
    limited = load_records("tatsu-lab/alpaca", "test", limit=2)
    assert limited == load_records("tatsu-lab/alpaca", "test")[:2]
    with one_line_error(ValueError, "split: got 'dev'"):
        load_records("tatsu-lab/alpaca", "dev")


def test_hub_data_of_another_name(monkeypatch):
    data = datasets.Dataset.from_list([{**RECORDS[0], "references": None}, RECORDS[1]])
    fake_hub(monkeypatch, {("somebody/tasks-v1.5", "dev"): data})
    records = load_records("somebody/tasks-v1.5", "dev")
    assert [(r.id, r.references) for r in records] == [("0", ("3",)), ("1", ("hi\u2028there",))]


def test_hub_row_that_is_wrong(monkeypatch):
    data = datasets.Dataset.from_list([{"instruction": "a", "input": None, "output": "b"}])
    fake_hub(monkeypatch, {("somebody/tasks", "test"): data})
    with one_line_error(ValueError, "somebody/tasks, row 0: found null as input"):
        load_records("somebody/tasks")


def test_hub_out_of_reach_is_one_line(monkeypatch):
    def load_dataset(name: str, split: str) -> None:
        raise ConnectionError("Couldn't reach 'somebody/tasks' on the Hub\nmore\nlines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with one_line_error(ValueError, "somebody/tasks is no file here .*Couldn't reach"):
        load_records("somebody/tasks")


def test_real_alpaca(shared_dir):
    records = load_records(shared_dir / "data" / "alpaca" / "alpaca.json")
    assert len(records) == 1507
    assert records[0].instruction.startswith("Summarize the following paragraph about")
    assert sum(not r.input.strip() for r in records) == 1076


def test_real_nlg(shared_dir):
    records = load_records(shared_dir / "data" / "nlg" / "test.jsonl", limit=300)
    assert [r.id for r in records] == [f"test-{i}" for i in range(300)]
    assert records[0].references == ("kiss seafood is expensive",)
    assert records[0].source == "rnnlg-restaurant"
    assert max(len(r.references) for r in records) > 1
