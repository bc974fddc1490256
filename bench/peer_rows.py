"""The peers group of bench.end_to_end: whole loops of every engine in turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from bench.cpu_cases import Row
from bench.engines import TRIES, Engine
from dynkern.evaluation.load_meter import LOAD_LIMIT
from dynkern.evaluation.timing import Spread


def compare_engines(
    engines: dict[str, Engine], sizes: dict[str, int], vocabulary: int, repeats: int
) -> Iterator[Row]:
    """Whole loops of every engine in turn; a row each. sizes: batch, prompt, new_tokens."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    loaded, foreign = dict.fromkeys(engines, False), dict.fromkeys(engines, 0.0)
    engines = dict(engines)
    for name, engine in list(engines.items()):
        done = engine.run(**sizes, vocabulary=vocabulary)  # not timed: compiles, warms up
        if "reason" in done:
            del engines[name], seconds[name]
            yield {"engine": name, "note": done["reason"]}
    for _ in range(repeats):
        for name, engine in list(engines.items()):
            for attempt in range(TRIES):
                done = engine.run(**sizes, vocabulary=vocabulary)
                if "reason" in done:
                    del engines[name], seconds[name]
                    yield {"engine": name, "note": done["reason"]}
                    break
                quiet = done["foreign"] <= LOAD_LIMIT
                if quiet or attempt == TRIES - 1:
                    loaded[name] |= not quiet
                    foreign[name] = max(foreign[name], done["foreign"])
                    seconds[name].append(done["seconds"])
                    break
    tokens = sizes["batch"] * (sizes["new_tokens"] if sizes["new_tokens"] > 1 else sizes["prompt"])
    for name, values in seconds.items():
        spread = Spread.of(values)
        yield {
            "engine": name,
            "dtype": name.partition("-")[2],
            "seconds": spread.median,
            "low": spread.p20,
            "high": spread.p80,
            "tokens_per_second": tokens / spread.median,
            "loaded": loaded[name],
            "foreign_load": foreign[name],
            "engine_version": engines[name].version,
        }


def peer_rows(
    checkpoint: Path,
    kinds: list[str],
    vocabulary: int,
    cases: list[dict[str, int]],
    repeats: int,
    python: str,
    converted: Path,
    limit: float,
) -> Iterator[Row]:
    """Every case over all engines that load. One that does not, fails, or takes too long gives a
    row that says why. converted, limit: of `Engine`.
    """
    engines: dict[str, Engine] = {}
    try:
        for kind in kinds:
            own = kind.startswith(("dynkern", "hf"))  # transformers is a dependency of dynkern's
            engine = Engine(kind, checkpoint, sys.executable if own else python, converted, limit)
            if engine.obstacle is None:
                engines[kind] = engine
            else:
                yield {"engine": kind, "case": "load", "note": engine.obstacle}
        for sizes in cases:
            prefill = sizes["new_tokens"] == 1
            for row in compare_engines(engines, sizes, vocabulary, repeats):
                yield {**row, **sizes, "case": "prefill" if prefill else "whole loop"}
    finally:
        for engine in engines.values():
            engine.close()
