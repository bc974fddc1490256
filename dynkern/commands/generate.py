"""`dynkern generate`: one answer, or a loop of prompts with the policy switched while it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from dynkern.arguments import check_integer, shown
from dynkern.data import TEMPLATES, Record, encode_prompt, prompt_cap
from dynkern.llm import LLM
from dynkern.policies import check_policy, is_planned
from dynkern.policies import policy as make_policy
from dynkern.routes import check_choice
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import Completion, RunStats, SamplingParams

HELP = """\
/policy SPEC       layers of the next answers, e.g. /policy uniform:6; without SPEC: what is set
/max N             tokens of an answer at most
/temperature T     0 is greedy
/seed N            of every random draw: another one, another answer
/help              this
/quit              leave, as Ctrl-D does
Ctrl-C stops an answer. Prompts do not see each other; one that begins with / takes a space ahead.\
"""
COMMANDS = ("/policy", "/max", "/temperature", "/seed", "/help", "/quit")


@dataclass(frozen=True)
class Answering:
    """How prompts are answered. template: "alpaca", "plain" or None for the prompt as it is;
    input: the template's input field.
    """

    policy: str = "full"
    template: str | None = None
    input: str = ""
    max_new_tokens: int = 64
    prefill: str = "full"
    kv_fill: str = "project"
    seed: int = 0
    sampling: SamplingParams = SamplingParams()

    def check(self, llm: LLM) -> None:
        """Raise ValueError, one line, unless a prompt of the model could be answered so."""
        RunOptions(1, self.prefill, self.kv_fill, self.seed)
        policy = make_policy(self.policy)
        check_policy(policy, llm.spec.num_layers)
        if self.prefill == "routed" and not is_planned(policy):
            raise ValueError(
                f"prefill: 'routed' needs a planned policy, got {self.policy!r}; use 'full'"
            )
        check_integer("max_new_tokens", self.max_new_tokens, 1, llm.spec.max_positions)
        if self.template is not None:
            check_choice("template", self.template, tuple(TEMPLATES))
        elif self.input:
            raise ValueError(f"--input: got {shown(self.input)}, expected it with --template only")


def answer(llm: LLM, prompt: str, how: Answering) -> None:
    """Stream the answer to stdout; layers run and tokens per second go to stderr."""
    ids: str | list[int] = prompt
    if how.template is not None:
        record = Record(id="0", instruction=prompt, input=how.input, output="", references=())
        cap = prompt_cap(how.template, llm.spec.max_positions - how.max_new_tokens + 1)
        ids = encode_prompt(llm.tokenizer, record, how.template, cap, llm.spec.bos_token_id).ids
    ended: list[str] = []

    def on_done(completion: Completion, stats: RunStats) -> None:
        ended.append(_summary(llm, completion, stats))

    pieces = llm.stream(
        ids,
        how.policy,
        max_new_tokens=how.max_new_tokens,
        prefill=how.prefill,
        kv_fill=how.kv_fill,
        seed=how.seed,
        sampling=how.sampling,
        on_done=on_done,
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    _tell(*ended)


def _summary(llm: LLM, completion: Completion, stats: RunStats) -> str:
    seconds = stats.seconds_prefill + stats.seconds_decode
    layers = "no routed pass"
    if completion.mean_layers is not None:
        layers = f"{completion.mean_layers:.1f} of {llm.spec.num_layers} layers a token"
    return (
        f"[{stats.new_tokens} tokens, {layers}, {stats.new_tokens / seconds:.1f} tokens/s, "
        f"prefill {stats.seconds_prefill * 1e3:.0f} ms]"
    )


class Conversation:
    """Prompts of stdin, a line each, until it ends or says /quit. how: changes as commands come.

    On a terminal Ctrl-C stops an answer and a bad line costs nothing. Lines of a pipe are answered
    in order, and Ctrl-C ends it all.
    """

    def __init__(self, llm: LLM, how: Answering) -> None:
        self.llm, self.how = llm, how
        self.listening = sys.stdin.isatty()
        self._failed, self._number = False, 0

    def run(self) -> int:
        """The exit code: 2 where a line of a pipe was bad."""
        if self.listening:
            _use_readline()
            layers = self.llm.spec.num_layers
            _tell(f"{self.llm.path}, {layers} layers; /help says what else there is")
        while True:
            try:
                self._run()
                return 2 if self._failed and not self.listening else 0
            except KeyboardInterrupt:
                # around all of the loop: it may come between any two lines of this file
                if not self.listening:
                    raise
                _tell("\n[stopped]")

    def _run(self) -> None:
        while True:
            try:
                line = self._type() if self.listening else self._next()
                if line is None or line.split()[:1] == ["/quit"]:
                    return
                if line.startswith("/"):
                    self._obey(line)
                elif line.strip():
                    answer(self.llm, line, self.how)
            except ValueError as error:
                self._failed = True
                _tell("dynkern: " + " ".join(str(error).split()))

    def _type(self) -> str | None:
        """A line of the terminal, with the policy as the prompt; None for Ctrl-D."""
        prompt = f"{self.how.policy}> "
        if not sys.stdout.isatty():
            # answers go to a file: what is said to the reader goes to the screen
            sys.stderr.write(prompt)
            sys.stderr.flush()
            prompt = ""
        try:
            return input(prompt)
        except EOFError:
            _tell("")
            return None

    def _next(self) -> str | None:
        """The next line of a pipe or file; None at its end."""
        content = sys.stdin.buffer.readline()
        self._number += 1
        try:
            return content.decode().rstrip("\r\n") if content else None
        except UnicodeDecodeError as error:
            byte = content[error.start]
            raise ValueError(
                f"stdin, line {self._number}: got byte 0x{byte:02x}, expected UTF-8"
            ) from None

    def _obey(self, line: str) -> None:
        name, _, value = line.strip().partition(" ")
        value, how = value.strip(), self.how
        if name == "/help":
            _tell(HELP)
        elif name not in COMMANDS:
            raise ValueError(f"command: got {shown(name)}, expected one of {', '.join(COMMANDS)}")
        elif name == "/policy" and not value:
            _tell(
                f"policy {how.policy}, max {how.max_new_tokens}, temperature "
                f"{how.sampling.temperature:g}, seed {how.seed}"
            )
        else:
            changed = _changed(how, name, value)
            changed.check(self.llm)
            self.how = changed


def _use_readline() -> None:
    try:
        import readline  # noqa: F401 (input() then edits lines and remembers them)
    except ImportError:  # not on Windows
        pass


def _changed(how: Answering, name: str, value: str) -> Answering:
    if name == "/policy":
        return replace(how, policy=value)
    if name == "/max":
        return replace(how, max_new_tokens=_read(name, value, int, "a whole number"))
    if name == "/seed":
        return replace(how, seed=_read(name, value, int, "a whole number"))
    temperature = _read(name, value, float, "a number")
    return replace(how, sampling=replace(how.sampling, temperature=temperature))


def _read(name: str, value: str, kind: Any, expected: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}") from None


def _tell(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)
