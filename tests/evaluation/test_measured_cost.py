"""measure_cost: what it times, and that schedules go by it from then on."""

from __future__ import annotations

import pytest

import dynkern
from dynkern.evaluation import measured_cost
from dynkern.evaluation.measured_cost import counts_up_to, measure_cost
from dynkern.evaluation.timing import interleave
from dynkern.llm import LLM
from support.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("cost") / "model", num_layers=4)


@pytest.fixture
def llm(path, monkeypatch):
    monkeypatch.setattr(
        measured_cost,
        "interleave",
        lambda cases, repeats, progress: interleave(
            cases, repeats, progress=progress, min_window=0.0, limit=1e9
        ),
    )
    return LLM(path)


def test_schedules_go_by_it(llm):
    assert dynkern.measure_cost is measure_cost
    seen = []
    model = measure_cost(llm, batch_size=3, repeats=1, progress=lambda *step: seen.append(step))
    assert llm.engine.cost_model is model and seen[-1][0] == seen[-1][1] > 0
    assert model.fixed.rows == model.layer.rows == (1, 2, 3) and model.fill is None
    assert all(seconds > 0 for seconds in model.fixed.seconds)
    assert model.length == 64 + 32
    for rows in (1, 2, 3):
        assert llm.engine.decode_cost(rows, 10.0) is model
    assert llm.engine.decode_cost(4, 10.0) is not model  # nothing is extrapolated
    prompts = [[2, 5, 7 + i] for i in range(12)]
    budgets = [f"uniform:{1 + i % 4}" for i in range(12)]
    stats = llm.run(prompts, budgets, batch_size=3, max_new_tokens=5, force_length=True).stats
    assert set(stats.predicted) == {"fifo", "cohort"}
    # fifo's passes are known: those that were run are predicted to the second
    fifo = llm.run(
        *(prompts, budgets),
        **{"batch_size": 3, "max_new_tokens": 5, "force_length": True, "schedule": "fifo"},
    ).stats
    assert stats.predicted["fifo"] == pytest.approx(model.possible_time(fifo.passes))


def test_rows_are_those_of_the_prompts(llm):
    text = "the river runs"
    model = measure_cost(llm, [text, [2, 5]], batch_size=4, new_tokens=6, repeats=1)
    assert model.length == (len(llm.encode(text)) + 2) / 2 + 3
    assert model.layer.rows == (1, 2, 4)


def test_counts():
    assert counts_up_to(1) == [1] and counts_up_to(32) == [1, 2, 4, 8, 16, 32]
    assert counts_up_to(11) == [1, 2, 4, 8, 11]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, expected 1 or more"),
        ({"new_tokens": 0}, "new_tokens: got 0"),
        ({"repeats": 0}, "repeats: got 0"),
        ({"prompts": []}, "prompts: got [], expected a list of prompts"),
        ({"prompts": "text"}, "prompts: got 'text', expected a list"),
        ({"prompts": [[]]}, "prompt: empty"),
        ({"prompts": [[10**6]]}, "prompt: got 1000000, expected 0 to"),
    ],
    ids=str,
)
def test_bad_arguments_measure_nothing(llm, arguments, message):
    with pytest.raises(ValueError) as caught:
        measure_cost(llm, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and llm.engine.cost_model is None
