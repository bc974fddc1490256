"""Measured costs of an LLM's decode passes, by which its engine then chooses schedules."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from dynkern.arguments import check_integer, shown
from dynkern.cost import CostModel
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import interleave
from dynkern.llm import LLM, Prompt

# of prompts made up where none are given
PROMPT_TOKENS = 64


def measure_cost(
    llm: LLM,
    prompts: Sequence[Prompt] | None = None,
    *,
    batch_size: int = 8,
    new_tokens: int = 64,
    repeats: int = 3,
    progress: Callable[[int, int, str], None] | None = None,
) -> CostModel:
    """Time the parts of passes of 1 to `batch_size` rows, and let schedule="auto" go by them.

    prompts: texts or token ids, whose rows are measured once half of new_tokens have been
    generated; None takes random ids. Give real ones for a trained model: the CPU engine does not
    read neurons that ReLU leaves at zero in all rows, and rows of noise agree on these. repeats:
    interleaved rounds, of which the medians count; rounds under load are done again. Takes a few
    hundred passes. Sets llm.engine.cost_model, and returns it. progress(done, total, label).
    ValueError, one line, for bad arguments.
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("new_tokens", new_tokens, 1)
    check_integer("repeats", repeats, 1)
    ids = _random_prompts(llm, batch_size) if prompts is None else _encoded(llm, prompts)
    ids = [ids[i % len(ids)] for i in range(batch_size)]
    middle = new_tokens // 2
    probe = EngineProbe.after(llm.engine, ids, middle, with_fill=False)
    length = sum(map(len, ids)) / len(ids) + middle
    calibration = Calibration(probe, counts_up_to(batch_size), length=length)
    timings = interleave(calibration.cases, repeats, progress=progress)
    llm.engine.cost_model = calibration.model(timings)
    return llm.engine.cost_model


def counts_up_to(rows: int) -> list[int]:
    """Row counts that say enough of 1 to `rows`: the powers of two, and `rows`."""
    return sorted({*(1 << i for i in range(rows.bit_length())), rows})


def _random_prompts(llm: LLM, count: int) -> list[list[int]]:
    draw, spec = random.Random(0), llm.spec
    length = min(PROMPT_TOKENS, spec.max_positions) - 1
    return [
        [spec.bos_token_id, *draw.choices(range(spec.vocab_size), k=length)] for _ in range(count)
    ]


def _encoded(llm: LLM, prompts: Sequence[Prompt]) -> list[list[int]]:
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts: got {shown(prompts)}, expected a list of prompts, or None")
    last = llm.spec.vocab_size - 1
    ids = [llm.encode(p) if isinstance(p, str) else list(p) for p in prompts]
    for prompt in ids:
        if not prompt:
            raise ValueError("prompt: empty, expected some text or token ids")
        for token in prompt:
            check_integer("prompt", token, 0, last)
    return ids
