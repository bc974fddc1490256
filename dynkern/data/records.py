"""Instruction records from local files and the Hugging Face hub.

Everything that can be wrong with a file is found here, once, and said in one line: no later room
meets a missing field or a text that cannot be encoded.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dynkern.arguments import shown
from dynkern.tasks import is_task_source, parse_source

FIELDS = ("instruction", "input", "output")
# a single split of 52,002 records on the hub; alpaca_indices cuts it
ALPACA = "tatsu-lab/alpaca"
ALPACA_SPLITS = ("train", "validation", "test")

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# the hub is given up after 23 s of retries: not for a name that is plainly a file's
_OTHER_FILES = (".txt", ".tsv", ".parquet", ".arrow", ".gz", ".zip", ".xlsx", ".ndjson")
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Record:
    """One task. id: unique in its data set. references: the answers that count, `output` alone
    where the data names no others. source: where the data set took it from, family: which kind of
    task it is, difficulty: how hard, a number or a word, each if the data says so.
    """

    id: str
    instruction: str
    input: str
    output: str
    references: tuple[str, ...] = ()
    source: str | None = None
    family: str | None = None
    difficulty: int | float | str | None = None


def load_records(source: str | Path, split: str = "test", limit: int | None = None) -> list[Record]:
    """The first `limit` records of a data set, in its order; all of them by default.

    source: a .json file (a list of objects), .jsonl (an object a line) or .csv (a header line);
    `tasks`, the suite of this package, or a part of it as `dynkern.tasks.TaskSource` says
    ("tasks:test?family=sort+copy&difficulty=3"), of which `limit` or 1,024 records are made; or
    else a hub id. Fields: instruction, input, output; optional id, source, family, difficulty,
    references (a list of texts; in .csv a JSON list). A record without id has its 0-based index in
    the data set as id. A local file is taken whole, whatever `split` says; a split that a `tasks`
    source names goes before `split`. The hub's tatsu-lab/alpaca is split by `alpaca_indices`, and
    its ids are places in the unsplit data.

    FileNotFoundError for a missing file; ValueError, one line with file and line number, for
    anything in it that is not as described, and for a hub id that cannot be loaded.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}, expected 1 or more")
    source = str(source)
    if is_task_source(source):
        rows = _task_rows(source, split, limit)
    else:
        rows = _file_rows(source) if _is_local(source) else _hub_rows(source, split)
    records: list[Record] = []
    places: dict[str, str] = {}
    for place, index, value in islice(rows, limit):
        record = _record(place, index, value)
        if record.id in places:
            raise ValueError(
                f"{place}: found id {record.id!r} again (first: {places[record.id]}), expected "
                "each id once"
            )
        places[record.id] = place
        records.append(record)
    if not records:
        raise ValueError(f"data: {source} is empty, expected at least one record")
    return records


def alpaca_indices(count: int, split: str) -> list[int]:
    """Places of a split's records in Alpaca data of `count` records, in the split's order.

    30 % are held out with seed 42 and that part is halved with seed 42, by `datasets`' own
    train_test_split: 36,401 / 7,800 / 7,801 of 52,002 (arXiv 2410.20022). ValueError for another
    split than train, validation, test, or fewer than 4 records.
    """
    if split not in ALPACA_SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(ALPACA_SPLITS)}")
    if count < 4:
        raise ValueError(f"count: got {count} records, expected at least 4 to split")
    from datasets import Dataset

    parts = Dataset.from_dict({"index": range(count)}).train_test_split(test_size=0.3, seed=42)
    held_out = parts["test"].train_test_split(test_size=0.5, seed=42)
    chosen = {"train": parts["train"], "validation": held_out["train"], "test": held_out["test"]}
    return list(chosen[split]["index"])


Row = tuple[str, int, Any]


def _is_local(source: str) -> bool:
    if not source.strip():
        raise ValueError("data: got an empty name, expected a file or a hub id")
    path = Path(source)
    kinds = ", ".join(_READERS)
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError(
                f"data: no file {shown(source)}, expected a file ({kinds}) or a hub id"
            ) from None
    except ValueError:
        pass  # a null byte: said below
    if path.is_dir():
        raise ValueError(f"data: {source} is a folder, expected a file ({kinds}) or a hub id")
    suffix = path.suffix.lower()
    known = suffix in _READERS
    if path.is_file():
        if not known:
            found = f"extension {path.suffix!r}" if path.suffix else "no extension"
            raise ValueError(f"data: {source} has {found}, expected one of {kinds}")
        return True
    if known or suffix in _OTHER_FILES or not _HUB_ID.fullmatch(source):
        named = source if source.isprintable() else shown(source)
        raise FileNotFoundError(f"data: no file {named}, expected a file ({kinds}) or a hub id")
    return False


def _task_rows(source: str, split: str, limit: int | None) -> Iterator[Row]:
    for index, value in enumerate(parse_source(source).records(split, limit)):
        yield f"{source}, record {index}", index, value


def _file_rows(source: str) -> Iterator[Row]:
    try:
        text = Path(source).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"data: {source} cannot be read ({error.strerror}), expected a readable file"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ValueError(
            f"{source}, line {line}: found byte 0x{byte:02x}, expected UTF-8"
        ) from None
    reader = _READERS[Path(source).suffix.lower()]
    for index, (line, value) in enumerate(reader(source, text)):
        yield f"{source}, line {line}", index, value


def _jsonl_rows(source: str, text: str) -> Iterator[tuple[int, Any]]:
    # not splitlines(): JSON texts may hold U+2028 and its kin as they are
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            yield line, _parse(source, line, "one JSON object a line", json.loads, content)


def _json_rows(source: str, text: str) -> Iterator[tuple[int, Any]]:
    """Elements of the list one by one, because `json.loads` would forget their lines."""
    decode = json.JSONDecoder().raw_decode
    at, line, counted = 0, 1, 0

    def skip_space() -> str:
        nonlocal at, line, counted
        at = _SPACE.match(text, at).end()
        line, counted = line + text.count("\n", counted, at), at
        return text[at : at + 1]

    def wrong(mark: str, expected: str) -> ValueError:
        found = repr(mark) if mark else "the end of the file"
        return ValueError(f"{source}, line {line}: found {found}, expected {expected}")

    mark = skip_space()
    if not mark:
        return
    if mark != "[":
        raise wrong(mark, "'[', a list of objects (for an object a line use .jsonl)")
    at += 1
    mark = skip_space()
    while mark != "]":
        element = line
        value, at = _parse(source, line, "a list of JSON objects", decode, text, at)
        mark = skip_space()
        yield element, value
        if mark not in (",", "]"):
            raise wrong(mark, "',' or ']'")
        if mark == ",":
            at += 1
            if skip_space() == "]":
                raise wrong("]", "an object after ','")
    at += 1
    if mark := skip_space():
        raise wrong(mark, "nothing after the list")


def _csv_rows(source: str, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{source}, line {line}: found broken CSV ({error}), expected quoted or plain cells"
            ) from None
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _header(source, line, cells)
            continue
        if len(cells) != len(header):
            raise ValueError(
                f"{source}, line {line}: found {len(cells)} cells, expected {len(header)} "
                f"({_listed(header)})"
            )
        optional = {"id", "source", "references", "family", "difficulty"}
        pairs = zip(header, cells, strict=True)
        value: dict[str, Any] = {k: v for k, v in pairs if v.strip() or k not in optional}
        if "references" in value:
            expected = "a JSON list of texts as references"
            value["references"] = _parse(source, line, expected, json.loads, value["references"])
        if re.fullmatch(r"\d{1,9}", value.get("difficulty", "")):
            value["difficulty"] = int(value["difficulty"])
        yield line, value


def _header(source: str, line: int, names: list[str]) -> list[str]:
    for name in FIELDS:
        if names.count(name) != 1:
            raise ValueError(
                f"{source}, line {line}: found columns {_listed(names)}, expected "
                f"{_listed(FIELDS)}, each once"
            )
    return names


_READERS: dict[str, Callable[[str, str], Iterator[tuple[int, Any]]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
}


def _parse(
    source: str, line: int, expected: str, parse: Callable[..., Any], text: str, *at: int
) -> Any:
    try:
        return parse(text, *at)
    except json.JSONDecodeError as error:
        # with a place in it `text` is the whole file, and an element of it may span lines
        line = error.lineno if at else line
        reason = f"{error.msg}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        reason = str(error)
    raise ValueError(
        f"{source}, line {line}: found broken JSON ({reason}), expected {expected}"
    ) from None


def _hub_rows(source: str, split: str) -> Iterable[Row]:
    alpaca = source == ALPACA
    if alpaca and split not in ALPACA_SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(ALPACA_SPLITS)}")
    import datasets

    try:
        with _quiet_hub():
            data = datasets.load_dataset(source, split="train" if alpaca else split)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"data: {source} is no file here and its split {split!r} could not be loaded from the "
            f"hub ({reason}); expected a local file or a hub id within reach"
        ) from None
    places: Iterable[int] = range(len(data))
    if alpaca:
        places = alpaca_indices(len(data), split)
        data = data.select(places)
    return ((f"{source}, row {i}", i, row) for i, row in zip(places, data, strict=True))


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Holds back the hub's warning for each of its five retries; the error itself says enough."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _record(place: str, index: int, value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: found {_kind(value)}, expected an object")
    missing = [name for name in FIELDS if name not in value]
    if missing:
        raise ValueError(
            f"{place}: found no {missing[0]} (fields: {_listed(value)}), expected {_listed(FIELDS)}"
        )
    texts = {name: _text(place, name, value[name]) for name in FIELDS}
    if not texts["instruction"].strip() and not texts["input"].strip():
        raise ValueError(f"{place}: found blank instruction and input, expected some text")
    references = value.get("references")
    if references is None:
        references = [texts["output"]]
    if not isinstance(references, list) or not references:
        found = "an empty list" if isinstance(references, list) else _kind(references)
        raise ValueError(f"{place}: found {found} as references, expected a list of texts")
    origin, family = value.get("source"), value.get("family")
    return Record(
        id=_identity(place, value.get("id"), index),
        references=tuple(_text(place, "references", text) for text in references),
        source=None if origin is None else _text(place, "source", origin),
        family=None if family is None else _text(place, "family", family),
        difficulty=_level(place, value.get("difficulty")),
        **texts,
    )


def _level(place: str, value: Any) -> int | float | str | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise ValueError(
            f"{place}: found {_kind(value)} as difficulty, expected a number or a text"
        )
    return _text(place, "difficulty", value)


def _identity(place: str, value: Any, index: int) -> str:
    if value is None:
        return str(index)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        found = "an empty text" if value == "" else _kind(value)
        raise ValueError(f"{place}: found {found} as id, expected a text or a whole number")
    return _text(place, "id", str(value))


def _text(place: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: found {_kind(value)} as {name}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair; tokenizers and UTF-8 files cannot hold it
        raise ValueError(f"{place}: found half a surrogate pair in {name}, expected text") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), str(value)[:40])


def _listed(names: Iterable[str]) -> str:
    # names come from the file and may hold line breaks; a message is one line
    return " ".join(", ".join(names).split()) or "none"
