"""`dynkern generate` as a loop: on a terminal with Ctrl-C and Ctrl-D, and over a pipe."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from dynkern.cli import main
from dynkern.llm import LLM
from dynkern.runtime.request import SamplingParams
from support.checkpoint import save_checkpoint

PROMPT = "the restaurant is near"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("loop") / "model"
    # so many positions that an answer takes seconds, and no token that ends it
    save_checkpoint(directory, 6, init_std=0.6, max_position_embeddings=20_000)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": -1}))
    return directory


def pipe(monkeypatch, capsys, content: bytes, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr of a loop over `content`."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code = main(["generate", "--max-new-tokens", "8", *arguments])
    seen = capsys.readouterr()
    return code, seen.out, seen.err.splitlines()


def test_on_a_terminal(model):
    pytest.importorskip("termios")
    from support.terminal import CTRL_C, CTRL_D, Terminal

    with Terminal("generate", "--model", str(model), "--max-new-tokens", "15000") as terminal:
        assert "6 layers; /help" in terminal.expect("full> ")
        terminal.send(PROMPT + "\n")
        # the echo of the line, then the beginning of an answer
        terminal.expect(re.escape(PROMPT) + r"\r\n[^\r]")
        terminal.send(CTRL_C)
        stopped = terminal.expect(r"\[stopped\]\r\nfull> ")
        assert "tokens/s" not in stopped and "Traceback" not in stopped

        terminal.send("/policy uniform:9\n")
        refused = terminal.expect("full> ")
        assert "dynkern: uniform budget: got 9, expected 1 to 6 layers\r\n" in refused
        terminal.send("/max 7\n")
        terminal.expect("full> ")
        # what was stopped leaves nothing behind
        terminal.send(PROMPT + "\n")
        assert "[7 tokens, 6.0 of 6 layers a token, " in terminal.expect("full> ")
        terminal.send("/policy uniform:3\n")
        terminal.expect("uniform:3> ")
        terminal.send(PROMPT + "\n")
        shown = terminal.expect("uniform:3> ")
        assert re.search(r"\[7 tokens, 3\.0 of 6 layers a token, [\d.]+ tokens/s, ", shown)
        (want,) = LLM(model).generate([PROMPT], "uniform:3", max_new_tokens=7)
        # the terminal turns every line end into two characters
        assert want.text.replace("\n", "\r\n") in shown

        terminal.send("half a line" + CTRL_C)
        terminal.expect("uniform:3> ")
        terminal.send(CTRL_D)
        assert terminal.end() == 0
        assert "Traceback" not in terminal.seen


def test_lines_of_a_pipe_are_answered_in_order(model, monkeypatch, capsys):
    content = (
        f"{PROMPT}\n\n/policy uniform:2\n/max 5\n{PROMPT}\n/temperature 1.5\n/seed 3\n{PROMPT}\n"
    )
    code, out, errors = pipe(monkeypatch, capsys, content.encode(), "--model", str(model))
    llm = LLM(model)
    sampling = SamplingParams(temperature=1.5)
    want = [
        *llm.generate([PROMPT], "full", max_new_tokens=8),
        *llm.generate([PROMPT], "uniform:2", max_new_tokens=5),
        *llm.generate([PROMPT], "uniform:2", max_new_tokens=5, seed=3, sampling=sampling),
    ]
    assert code == 0
    assert out == "".join(f"{completion.text}\n" for completion in want)
    assert want[1].token_ids != want[2].token_ids
    told = [re.match(r"\[(\d) tokens, (\d\.\d) of 6 layers a token", line) for line in errors]
    assert [match.groups() for match in told] == [("8", "6.0"), ("5", "2.0"), ("5", "2.0")]


def test_quit_ends_a_pipe(model, monkeypatch, capsys):
    content = b"/quit\n" + PROMPT.encode()
    assert pipe(monkeypatch, capsys, content, "--model", str(model)) == (0, "", [])


def test_a_template_and_a_line_that_begins_with_a_slash(model, monkeypatch, capsys):
    options = ["--model", str(model), "--template", "plain"]
    code, out, errors = pipe(monkeypatch, capsys, b" /path is\n", *options)
    one = main(["generate", "--max-new-tokens", "8", *options, "--prompt", " /path is"])
    assert code == one == 0 and out == capsys.readouterr().out and len(errors) == 1


def test_settings_and_help_are_told(model, monkeypatch, capsys):
    code, out, errors = pipe(monkeypatch, capsys, b"/policy\n/help\n", "--model", str(model))
    assert (code, out) == (0, "")
    assert errors[0] == "policy full, max 8, temperature 0, seed 0"
    told = "\n".join(errors)
    for command in ("/policy SPEC", "/max N", "/temperature T", "/seed N", "/help", "/quit"):
        assert command in told


BAD_LINES = {
    "unknown command": (b"/frob 3", "command: got '/frob', expected one of /policy, /max"),
    "unknown policy": (b"/policy nope:3", "policy 'nope:3': unknown, expected one of full"),
    "policy too large": (b"/policy uniform:7", "uniform budget: got 7, expected 1 to 6 layers"),
    "max": (b"/max 0", "max_new_tokens: got 0, expected 1 to 20000"),
    "max too large": (b"/max 20001", "max_new_tokens: got 20001, expected 1 to 20000"),
    "max is no number": (b"/max many", "/max: got 'many', expected a whole number"),
    "no max": (b"/max", "/max: got '', expected a whole number"),
    "temperature": (b"/temperature -1", "temperature: got -1.0, expected a finite number, 0"),
    "temperature nan": (b"/temperature nan", "temperature: got nan, expected a finite number"),
    "temperature text": (b"/temperature hot", "/temperature: got 'hot', expected a number"),
    "seed": (b"/seed -1", "seed: got -1, expected an integer from 0 to 2**64 - 1"),
    "no UTF-8": (b"caf\xe9", "stdin, line 1: got byte 0xe9, expected UTF-8"),
    "too long": (b"a b" * 20_000, "prompt of request 0: too long, "),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_told_and_the_loop_goes_on(model, monkeypatch, capsys, line, message):
    content = line + b"\n/policy\n" + PROMPT.encode() + b"\n"
    code, out, errors = pipe(monkeypatch, capsys, content, "--model", str(model))
    assert code == 2 and out.strip()
    assert len(errors) == 3 and errors[0].startswith(f"dynkern: {message}"), errors
    # nothing changed
    assert errors[1] == "policy full, max 8, temperature 0, seed 0"
    assert errors[2].startswith("[8 tokens, 6.0 of 6 layers")


def test_routed_prefill_takes_planned_policies_only(model, monkeypatch, capsys):
    options = ["--model", str(model), "--prefill", "routed"]
    content = b"/policy stochastic:0.5\n/policy uniform:2\nhello\n"
    code, out, errors = pipe(monkeypatch, capsys, content, *options)
    assert code == 2 and "prefill: 'routed' needs a planned policy" in errors[0]
    assert "2.0 of 6 layers a token" in errors[1]


def test_an_input_field_needs_a_prompt(model, monkeypatch, capsys):
    options = ["--model", str(model), "--template", "plain", "--input", "x"]
    code, out, errors = pipe(monkeypatch, capsys, b"hello\n", *options)
    assert (code, out) == (2, "") and errors[0].startswith("dynkern: --input: got 'x', expected")
