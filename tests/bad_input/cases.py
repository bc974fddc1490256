"""A row of the table of bad input, and what the rows stand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import dynkern
from dynkern.llm import LLM
from dynkern.runtime.request import SamplingParams
from support.checkpoint import save_checkpoint, save_records


class Place:
    """A folder with a checkpoint of 6 layers, 320 tokens and 160 positions, and records for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save_checkpoint(folder / "model", 6)
        self.data = save_records(folder / "data.jsonl")

    @cached_property
    def llm(self) -> LLM:
        return LLM(self.model)

    @cached_property
    def module(self) -> dynkern.OPTForCausalLM:
        return dynkern.OPTForCausalLM.from_pretrained(self.model).eval()

    def run(self, **given: Any) -> Any:
        """LLM.run of one short prompt."""
        return self.llm.run(**{"prompts": [[2, 5]], "max_new_tokens": 3, **given})

    def sample(self, **given: Any) -> Any:
        """The same with sampling parameters."""
        return self.run(sampling=SamplingParams(**given))

    def generate(self, ids: Any = None, **given: Any) -> Any:
        """The drop-in's `generate` of two rows under a policy."""
        ids = torch.tensor([[2, 5, 6, 7], [2, 8, 9, 10]]) if ids is None else ids
        return self.module.generate(ids, **{"max_new_tokens": 3, "policy": "uniform:3", **given})


@dataclass(frozen=True)
class Case:
    """call must raise `kind` with one line that begins with `argument`, shows `given` and says
    what is expected. For the command line, where `call` is its words: exit code 2, and the line on
    stderr.
    """

    argument: str
    given: str
    call: Callable[[Place, Path], Any] | str
    expected: str = "expected"
    kind: type[Exception] = ValueError

    @property
    def name(self) -> str:
        words = self.call if isinstance(self.call, str) else ""
        return f"{self.argument}: {self.given} {words}"[:70].strip()


def api(
    argument: str, given: str, call: Callable[[Place], Any], expected: str = "expected"
) -> Case:
    return Case(argument, given, lambda place, scratch: call(place), expected)
