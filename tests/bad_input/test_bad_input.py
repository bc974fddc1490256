"""The table of bad input: each row one clear line, from Python and from the command line."""

from __future__ import annotations

import re
import shlex
from collections import Counter

import pytest

from bad_input import api, checkpoints, command_line, commands, data, drop_in
from bad_input.cases import Case, Place
from dynkern.cli import main
from support.checkpoint import save_checkpoint

IN_PYTHON = [*api.CASES, *drop_in.CASES, *checkpoints.CASES, *data.CASES]
ON_THE_COMMAND_LINE = [*command_line.CASES, *commands.CASES]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("bad_input"))
    (place.folder / "data.txt").write_text("text\n")
    (place.folder / "a_folder_instead" / "samples.jsonl").mkdir(parents=True)
    words = command_line.EVAL.format(p=place.folder, out=place.folder / "used")
    quick = ["--no-timing", "--limit", "2", "--max-new-tokens", "2"]
    assert main([*shlex.split(words), *quick]) == 0
    make_tables(place)
    return place


def make_tables(place: Place) -> None:
    """A table, a damaged one, files of routes, and a model that none of them is for."""
    folder = place.folder
    save_checkpoint(folder / "other", 4)
    words = f"{commands.REFILL} --model {{p}}/model".format(p=folder)
    assert main(shlex.split(words)) == 0
    content = (folder / "table" / "table.sqlite").read_bytes()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "table.sqlite").write_bytes(content[: len(content) // 2])
    (folder / "short.json").write_text('{"a": "101"}')
    (folder / "broken.json").write_text("[1,")
    (folder / "bytes.json").write_bytes(b"\xff\xfe")


def check_message(case: Case, message: str) -> None:
    assert len(message.splitlines()) == 1 and len(message) < 600, message
    assert re.match(rf"(\S*/)?{re.escape(case.argument)}\b", message) or message.startswith(
        case.argument
    ), message
    assert case.given in message and case.expected in message, message


def states(folder) -> dict:
    """Every file below a folder, and what it holds."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", IN_PYTHON, ids=[case.name for case in IN_PYTHON])
def test_in_python(place, tmp_path, capfd, case):
    with pytest.raises(case.kind) as raised:
        case.call(place, tmp_path)
    check_message(case, str(raised.value))
    wanted = ("expected", "use ", "exceed", "cannot be read", "no tensor")
    assert any(words in str(raised.value) for words in wanted), str(raised.value)
    assert "has run" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "case", ON_THE_COMMAND_LINE, ids=[case.name for case in ON_THE_COMMAND_LINE]
)
def test_on_the_command_line(place, tmp_path, capsys, monkeypatch, case):
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    before = states(place.folder)
    where = {"p": place.folder, "out": tmp_path / "out"}
    assert main(shlex.split(case.call.format(**where))) == 2
    seen = capsys.readouterr()
    (line,) = seen.err.splitlines()
    assert line.startswith("dynkern: ")
    filled = Case(case.argument, case.given.format(**where), case.call, case.expected)
    check_message(filled, line.removeprefix("dynkern: "))
    # nothing that was there has changed, and nothing looks like a result
    assert states(place.folder) == before and not states(tmp_path)


def test_the_table_is_as_large_as_it_says():
    rows = [*IN_PYTHON, *ON_THE_COMMAND_LINE]
    assert len(rows) >= 60
    assert all(case.argument and case.given and case.expected for case in rows)
    parts = {"api": api, "drop-in": drop_in, "command line": command_line, "commands": commands}
    parts |= {"checkpoints": checkpoints, "data": data}
    assert all(len(part.CASES) >= 30 for part in parts.values())
    named = Counter(case.argument.split()[0] for case in rows)
    assert {"max_new_tokens", "seed", "kv_fill", "attention_mask", "temperature"} <= set(named)
