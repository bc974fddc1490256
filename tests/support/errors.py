"""What bad input must give: an exception of the right kind with a message of one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def one_line_error(kind: type[Exception], match: str) -> Iterator[None]:
    """Expect exactly `kind`, its message matching `match` (searched) and free of line breaks."""
    with pytest.raises(kind, match=match) as raised:
        yield
    assert type(raised.value) is kind
    assert len(str(raised.value).splitlines()) == 1
