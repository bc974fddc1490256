"""EngineProbe: parts of a pass, repeatable, on both executors."""

from __future__ import annotations

import pytest
import torch

from dynkern.evaluation.calibration import BURST, Calibration
from dynkern.evaluation.probe import EngineProbe
from dynkern.llm import LLM
from support.backends import BACKENDS
from support.opt import save_opt

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
    for part in (probe.full_pass, probe.fixed_part, lambda n: probe.full_passes(n, BURST)):
        part(n_rows)
        assert snapshot(rows) == before
    probe.kv_fill_part(n_rows)
    filled = probe._fills[n_rows].cache
    first = filled.k[:, :, 1].clone()
    probe.kv_fill_part(n_rows)
    assert torch.equal(filled.k[:, :, 1], first) and first.isfinite().all()


def test_the_longest_rows_stay_within_the_positions(llm):
    probe = EngineProbe(llm.engine, [llm.spec.max_positions], with_fill=False)
    probe.full_passes(2, BURST)
    assert probe.kv_fill_part is None


def test_it_counts_its_passes(llm, monkeypatch):
    probe = EngineProbe(llm.engine, [5], with_fill=False)
    advance, passes = llm.engine.executor.advance, []

    def counting(*arguments):
        results = advance(*arguments)
        passes.extend(int(result.ran.sum()) for result in results)
        return results

    monkeypatch.setattr(llm.engine.executor, "advance", counting)
    calibration = Calibration(probe, [1, 2])
    for case in calibration.cases.values():
        case()
    assert passes == [NUM_LAYERS] * BURST + [2 * NUM_LAYERS] * BURST
