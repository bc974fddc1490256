"""What counts as a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def refused(call: Callable[[], Any], *names: str) -> tuple[bool, Any]:
    """(True, None) for a one-line ValueError that begins with one of `names`, else the result."""
    try:
        return False, call()
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert message.startswith(names), message
        return True, None
