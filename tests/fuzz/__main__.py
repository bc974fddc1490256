"""python -m tests.fuzz --minutes N [target ...]: fuzz each target in turn, on fresh examples.

Prints examples and failures of every target; a failure is printed with its shrunken example. Exit
code 1 where there was one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from hypothesis import HealthCheck, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fuzz.targets import TARGETS, Place  # noqa: E402

# of one target at a time; each round draws from another seed
ROUND = 200


def fuzz(place: Place, name: str, number: int) -> tuple[int, str | None]:
    """Examples of one round, and what failed."""
    count = 0

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal count
        count += 1
        TARGETS[name](place, data)

    try:
        check()
    except Exception:
        return count, traceback.format_exc()
    return count, None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="of the first round; default: a fresh one")
    given = parser.parse_args(arguments)
    names = given.targets or list(TARGETS)
    if unknown := sorted({*names} - {*TARGETS}):
        parser.error(f"targets: got {unknown[0]!r}, expected some of {', '.join(TARGETS)}")
    torch.set_num_threads(1)
    number = given.seed if given.seed is not None else int.from_bytes(os.urandom(4), "little")
    print(f"first seed {number}", flush=True)
    examples, failures = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    until = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        while time.monotonic() < until:
            for name in names:
                count, failed = fuzz(place, name, number)
                examples[name] += count
                if failed is not None:
                    failures[name] += 1
                    print(f"{name}, seed {number}:\n{failed}", flush=True)
                if time.monotonic() >= until:
                    break
            number += 1
    for name in names:
        print(f"{name}: {examples[name]} examples, {failures[name]} failures")
    print(f"{sum(examples.values())} examples, {sum(failures.values())} failures")
    return 1 if any(failures.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
