"""Every fuzz target in short, on the same examples each time; `python -m tests.fuzz` goes on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS, Place

# dearer ones draw fewer
EXAMPLES = {"batches": 40, "config_json": 60, "run_arguments": 100, "spec_strings": 100}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", TARGETS)
def test_target(place, name):
    @settings(
        max_examples=EXAMPLES.get(name, 150),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        TARGETS[name](place, data)

    check()


def test_a_wrong_result_is_found(place, monkeypatch):
    # the harness itself: a target that cannot fail would prove nothing
    monkeypatch.setattr("dynkern.routes.uniform_order", lambda layers: list(range(layers)))
    with pytest.raises(AssertionError):
        test_target(place, "budgets")
