"""Runs requests on an engine and records what every pass saw: logits, and where layers ran."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from dynkern.llm import LLM
from dynkern.runtime import engine as engine_module
from dynkern.runtime.request import RunResult
from dynkern.runtime.sampling import TokenPicker


@dataclass
class RowTrace:
    """logits: [V] for each generated token; keep: bool [L] for each routed pass."""

    logits: list[Tensor] = field(default_factory=list)
    keep: list[Tensor] = field(default_factory=list)


@dataclass
class Trace:
    """A run's result, its rows by request id, and the prompts that each prefill pass was given."""

    result: RunResult
    rows: dict[int, RowTrace]
    prefills: list[int]
    kv_fill: str = "project"


def trace_run(monkeypatch: pytest.MonkeyPatch, llm: LLM, prompts: list, policy, **options) -> Trace:
    """LLM.run, recorded. Exit heads settle no token here, so that every token shows its logits."""
    rows: dict[int, RowTrace] = {}
    prefills: list[int] = []
    decode, prefill = llm.engine.executor.decode, llm.engine.executor.prefill

    class RecordingPicker(TokenPicker):
        is_greedy = False

        def pick(self, hidden, n, slots, request, step):
            count = hidden.shape[0] if n is None else int(n)
            logits = self.head.logits(hidden, n)[:count]
            for row, request_id in zip(logits, request[:count].tolist(), strict=True):
                rows.setdefault(request_id, RowTrace()).logits.append(row.clone())
            token = torch.zeros(hidden.shape[0], dtype=torch.int64)
            token[:count] = logits.argmax(dim=-1)
            return token

    def recording_decode(batch, cache, picker):
        result = decode(batch, cache, picker)
        for slot in batch.alive.nonzero().flatten().tolist():
            rows[int(batch.request[slot])].keep.append(result.ran[:, slot].clone())
        return result

    def recording_prefill(given, routes=None):
        prefills.append(len(given))
        return prefill(given, routes)

    monkeypatch.setattr(engine_module, "TokenPicker", RecordingPicker)
    monkeypatch.setattr(llm.engine.executor, "decode", recording_decode)
    monkeypatch.setattr(llm.engine.executor, "prefill", recording_prefill)
    return Trace(llm.run(prompts, policy, **options), rows, prefills)
