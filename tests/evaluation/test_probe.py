"""EngineProbe: parts of a pass, repeatable, on both executors."""

from __future__ import annotations

import pytest
import torch

from dynkern.evaluation.calibration import BURST, PART_BURST, Calibration
from dynkern.evaluation.probe import EngineProbe
from dynkern.llm import LLM
from support.backends import BACKENDS
from support.opt import random_prompts, save_opt

NUM_LAYERS = 6


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tmp_path_factory.mktemp("opt")
    save_opt(directory)
    return LLM(directory, backend=request.param)


def snapshot(rows) -> list:
    batch = rows.batch
    state = (batch.position, batch.step, batch.alive, batch.route, rows.cache.length)
    return [tensor.tolist() for tensor in state]


@pytest.mark.parametrize("n_rows", [1, 3, 48])
def test_parts_leave_the_rows_as_they_were(llm, n_rows):
    probe = EngineProbe(llm.engine, [9, 4, 7], with_fill=True)
    probe.full_pass(n_rows)
    rows = probe._passes[n_rows]
    lengths = [[9, 4, 7][i % 3] for i in range(n_rows)]
    assert rows.cache.length.tolist() == [lengths] * NUM_LAYERS
    before = snapshot(rows)
    several = (lambda n: probe.full_passes(n, BURST), lambda n: probe.fixed_parts(n, PART_BURST))
    for part in (probe.full_pass, probe.fixed_part, *several):
        part(n_rows)
        assert snapshot(rows) == before
    probe.kv_fill_part(n_rows)
    filled = probe._fills[n_rows].cache
    first = filled.k[:, :, 1].clone()
    probe.kv_fill_parts(n_rows, n_rows, PART_BURST)
    assert torch.equal(filled.k[:, :, 1], first) and first.isfinite().all()


def test_the_longest_rows_stay_within_the_positions(llm):
    probe = EngineProbe(llm.engine, [llm.spec.max_positions], with_fill=False)
    probe.full_passes(2, BURST)
    assert probe.kv_fill_part is None


@pytest.mark.parametrize("n_rows", [1, 3])
def test_rows_hold_what_the_model_says_to_prompts(llm, n_rows):
    prompts = [list(p) for p in random_prompts(2, seed=5)]
    probe = EngineProbe.after(llm.engine, prompts, 6, with_fill=False)
    probe.full_pass(n_rows)
    rows = probe._passes[n_rows]
    mine = [prompts[i % 2] for i in range(n_rows)]
    assert rows.cache.length.tolist() == [[len(p) + 6 for p in mine]] * NUM_LAYERS
    said = llm.generate(mine, max_new_tokens=8, force_length=True, batch_size=n_rows)
    assert rows.batch.token.tolist() == [row.token_ids[6] for row in said]
    before = snapshot(rows), rows.batch.token.tolist()
    probe.full_passes(n_rows, BURST)
    assert (snapshot(rows), rows.batch.token.tolist()) == before
    with llm.engine.stepping():
        assert probe._decode(rows, 1).tolist() == [row.token_ids[7] for row in said]


def test_long_prompts_leave_room_for_a_burst(llm):
    most = llm.spec.max_positions
    prompts = [[2] + [9] * (most - 1), [2, 7, 7]]
    probe = EngineProbe.after(llm.engine, prompts, 1, with_fill=False)
    probe.full_passes(2, BURST)
    assert probe._passes[2].cache.length[0].tolist() == [most - BURST, 3]


def test_it_counts_its_passes(llm, monkeypatch):
    probe = EngineProbe(llm.engine, [5], with_fill=False)
    advance, passes = llm.engine.executor.advance, []

    def counting(*arguments):
        results = advance(*arguments)
        passes.extend(int(result.ran.sum()) for result in results)
        return results

    fixed_part, fixed = llm.engine.executor.fixed_part, []

    def counting_fixed(batch, cache, picker, count):
        fixed.append((batch.n_slots, count))
        return fixed_part(batch, cache, picker, count)

    monkeypatch.setattr(llm.engine.executor, "advance", counting)
    monkeypatch.setattr(llm.engine.executor, "fixed_part", counting_fixed)
    calibration = Calibration(probe, [1, 2])
    for case in calibration.cases.values():
        case()
    assert passes == [NUM_LAYERS] * BURST + [2 * NUM_LAYERS] * BURST
    assert fixed == [(1, PART_BURST), (2, PART_BURST)]
