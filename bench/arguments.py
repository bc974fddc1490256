"""Bad arguments of the benchmarks' commands: one line on stderr, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer


def check_each(argument: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a value that is not known."""
    for value in given:
        if value not in known:
            refuse(f"--{argument}: got {value!r}, expected one of {', '.join(known)}")


def refuse(message: str) -> NoReturn:
    """Say why and end."""
    print(message, file=sys.stderr)
    raise typer.Exit(2)
