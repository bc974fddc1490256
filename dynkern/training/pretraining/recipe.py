"""Recipes: all that decides a training run on the task suite, as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dynkern.arguments import check_integer, check_number, shown
from dynkern.tasks import records
from dynkern.training.pretraining.drills import drill_records

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
DEFAULT_RECIPE = FOLDER / "opt-tasks-10m.json"


@dataclass(frozen=True)
class Phase:
    """Until so many tokens were read in all: which tasks, how many layers, how many left out.

    families, difficulties: () for all. layerdrop: the rate at the phase's end, to which it goes in
    a straight line from that of the phase before. drills: the share of records that are drills,
    of these kinds. accumulation: as the recipe's, 0 for that.
    """

    until_tokens: int
    layers: int
    families: tuple[str, ...] = ()
    difficulties: tuple[int, ...] = ()
    layerdrop: float = 0.0
    drills: float = 0.0
    kinds: tuple[str, ...] = ()
    accumulation: int = 0

    def check(self) -> None:
        """Raise a one-line ValueError on anything out of range."""
        check_integer("until_tokens", self.until_tokens, 1)
        check_integer("layers", self.layers, 1)
        check_integer("accumulation", self.accumulation, 0)
        check_number("layerdrop", self.layerdrop, lambda x: 0 <= x < 1, "0 to below 1")
        check_number("drills", self.drills, lambda x: 0 <= x <= 1, "0 to 1")
        records("train", 0, self.families, self.difficulties)
        next(drill_records(0, 0, self.kinds))


@dataclass(frozen=True)
class Recipe:
    """phases: in order; a later one may have a multiple of the layers before it. batch_tokens: of a
    batch, padding included. accumulation: batches of a step, which the processes of a launch share
    out evenly. learning_rate: of AdamW (embeddings, norms, biases); muon_rate: of Muon (every other
    matrix). warmup_steps: also after each growth. decay_tokens: the last ones, over which both
    rates fall to a tenth along a cosine. eval_tokens: between evaluations on eval_records of the
    validation split. tokenizer_records: what the BPE is learned from. answer_power: each token
    weighs its answer's length to the power of minus this, so that 0 is the mean over tokens and 1
    the mean over answers.
    """

    phases: tuple[Phase, ...]
    hidden_size: int = 256
    vocab_size: int = 2048
    max_positions: int = 256
    batch_tokens: int = 1536
    accumulation: int = 1
    learning_rate: float = 1e-3
    muon_rate: float = 2e-3
    warmup_steps: int = 200
    decay_tokens: int = 0
    eval_tokens: int = 2_000_000
    eval_records: int = 192
    tokenizer_records: int = 20_000
    answer_power: float = 0.0
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.phases[-1].until_tokens

    def check(self) -> None:
        """Raise a one-line ValueError on anything that does not fit."""
        if not self.phases:
            raise ValueError("phases: got none, expected at least one")
        for name in (
            "hidden_size",
            "vocab_size",
            "batch_tokens",
            "accumulation",
            "eval_tokens",
            "eval_records",
        ):
            check_integer(name, getattr(self, name), 1)
        check_integer("max_positions", self.max_positions, 8)
        check_integer("tokenizer_records", self.tokenizer_records, 1)
        check_integer("warmup_steps", self.warmup_steps, 0)
        check_integer("seed", self.seed, 0, (1 << 32) - 1)
        check_number("answer_power", self.answer_power, lambda x: 0 <= x <= 1, "0 to 1")
        for name in ("learning_rate", "muon_rate"):
            check_number(name, getattr(self, name), lambda x: x > 0, "more than 0")
        before = Phase(0, self.phases[0].layers)
        for phase in self.phases:
            phase.check()
            if phase.until_tokens <= before.until_tokens:
                raise ValueError(
                    f"until_tokens: got {phase.until_tokens} behind {before.until_tokens}, "
                    "expected more in each phase"
                )
            if phase.layers % before.layers:
                raise ValueError(
                    f"layers: got {phase.layers} behind {before.layers}, expected a multiple of it"
                )
            before = phase
        check_integer("decay_tokens", self.decay_tokens, 0, self.tokens)

    def batches(self, number: int) -> int:
        """Of a step in a phase."""
        return self.phases[number].accumulation or self.accumulation

    def layerdrop(self, number: int, tokens: int) -> float:
        """The rate in a phase, once `tokens` were read in all."""
        phase = self.phases[number]
        start, rate = 0, phase.layerdrop
        if number:
            start, rate = self.phases[number - 1].until_tokens, self.phases[number - 1].layerdrop
        share = (tokens - start) / (phase.until_tokens - start)
        return rate + (phase.layerdrop - rate) * min(1.0, share)

    def to_json(self) -> dict[str, Any]:
        """As `read_recipe` reads it."""
        return asdict(self)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a JSON file. FileNotFoundError or ValueError, one line, where it is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"recipe: no file {path}, expected a recipe in JSON")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"recipe: {path} cannot be read ({reason}), expected JSON") from None
    recipe = _made(Recipe, "recipe", value)
    recipe.check()
    return recipe


def _made(kind: type, what: str, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: got {shown(value)}, expected an object")
    names = [field.name for field in fields(kind)]
    for name in value:
        if name not in names:
            raise ValueError(f"{what}: got {name!r}, expected one of {', '.join(names)}")
    given = dict(value)
    for name in ("phases", "families", "difficulties", "kinds"):
        if name in given:
            if not isinstance(given[name], list):
                raise ValueError(f"{name}: got {shown(given[name])}, expected a list")
            given[name] = tuple(given[name])
    if "phases" in given:
        given["phases"] = tuple(_made(Phase, "phases", phase) for phase in given["phases"])
    try:
        return kind(**given)
    except TypeError:
        needed = "phases" if kind is Recipe else "until_tokens and layers"
        raise ValueError(f"{what}: got {shown(value)}, expected {needed} in it") from None
