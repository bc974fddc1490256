"""Fixtures of the op tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.backends import cpu_isa, isa_levels


@pytest.fixture(params=isa_levels())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every level that this processor has, in use."""
    with cpu_isa(request.param):
        yield request.param
