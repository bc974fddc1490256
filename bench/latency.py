"""The latency group of bench.end_to_end: first token, later tokens, throughput and peak memory.

Every engine (dynkern under each policy, a model of fewer layers, transformers eager and compiled,
OpenVINO, CTranslate2) answers the same fresh prompts in the same rounds, in turn. A token counts
from when the caller has it; tokens that come together share the wait for them evenly. An engine
that does not load, fails, or takes too long (to compile, say) is a row that says why.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.engines import TRIES, Engine
from dynkern.evaluation.load_meter import LOAD_LIMIT
from dynkern.evaluation.timing import Spread

Row = dict[str, Any]
COLUMNS = (
    *("shape", "dtype", "batch", "prompt", "new_tokens", "lengths", "engine", "policy"),
    *("seconds", "low", "high", "tokens_per_second", "speedup"),
    *("first_p50", "first_p95", "first_p99", "token_p50", "token_p95", "token_p99", "wait_p99"),
    *("peak_memory_bytes", "mean_tokens", "warm_up", "rounds"),
    *("loaded", "foreign_load", "engine_version", "note"),
)
# engines by default: each precision beside dynkern's own full depth in it
DEFAULT_KINDS = (
    *("dynkern-bfloat16", "openvino-bfloat16", "hf-bfloat16", "hf_static-bfloat16"),
    *("dynkern-int8", "openvino-int8", "ctranslate2-int8"),
)
DEFAULT_BATCHES = (1, 8)
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass
class Entrant:
    """One engine under one policy, and what its runs gave; the lists hold one entry a round.

    smaller: the worker's model is one of fewer layers, `policy` its name, and all of them run.
    """

    kind: str
    policy: str
    worker: Engine
    smaller: bool = False
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    times: list[list[list[float]]] = field(default_factory=list)
    peak: int = 0
    warm_up: float = 0.0
    foreign: float = 0.0
    loaded: bool = False
    obstacle: str | None = None

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return self.kind.partition("-")[2]

    def run(self, prompts: list[list[int]], new_tokens: int, natural: bool) -> Row:
        """One answer of the worker; a failure stays with the entrant."""
        policy = "full" if self.smaller else self.policy
        done = self.worker.answer(prompts, new_tokens, natural=natural, policy=policy)
        self.obstacle = done.get("reason")
        return done


def percentile(values: Sequence[float], share: float) -> float:
    """Interpolated between neighbours. ValueError without values."""
    if not values:
        raise ValueError("values: got none, expected at least one")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def gaps(times: Sequence[float]) -> tuple[list[float], list[float]]:
    """Seconds for each token of a row after the first delivery, and waits between deliveries.

    times: of the row's tokens, ascending. Tokens of one moment came together: each of k such took
    a k-th of the wait.
    """
    each: list[float] = []
    waits: list[float] = []
    moments = sorted(set(times))
    for before, at in zip(moments, moments[1:], strict=False):
        together = sum(1 for time in times if time == at)
        waits.append(at - before)
        each += [(at - before) / together] * together
    return each, waits


def compare(
    entrants: Sequence[Entrant],
    fresh: Callable[[], list[list[int]]],
    new_tokens: int,
    natural: bool,
    repeats: int,
) -> Iterator[Row]:
    """A row for each entrant, of which every round goes through all; fresh(): prompts of a round.

    speedup: tokens a second over those of dynkern's full depth in the same dtype, within rounds.
    """
    rounds = [fresh() for _ in range(1 + repeats)]
    # the longest first, not timed: what compiles for a length has then done so
    rounds.sort(key=lambda prompts: -max(map(len, prompts)))
    for entrant in entrants:
        entrant.warm_up = float(entrant.run(rounds[0], new_tokens, natural).get("seconds", 0.0))
    timed = rounds[1:]
    for number, prompts in enumerate(timed):
        # in another order each, since what ran before leaves its data in the caches
        for entrant in random.Random(number).sample(list(entrants), len(entrants)):
            if entrant.obstacle is None:
                _one_round(entrant, prompts, new_tokens, natural)
    lengths = [len(prompt) for prompts in timed for prompt in prompts]
    for entrant in entrants:
        base = _base_of(entrant, entrants)
        row = {"engine": entrant.kind, "policy": entrant.policy, "dtype": entrant.dtype}
        row |= {"batch": len(timed[0]), "prompt": round(sum(lengths) / len(lengths))}
        row |= {"new_tokens": new_tokens, "lengths": "natural" if natural else "forced"}
        if entrant.obstacle is not None:
            yield {**row, "note": entrant.obstacle}
        else:
            yield {**row, **_measures(entrant, base)}


def _one_round(entrant: Entrant, prompts: list[list[int]], new_tokens: int, natural: bool) -> None:
    for attempt in range(TRIES):
        done = entrant.run(prompts, new_tokens, natural)
        if entrant.obstacle is not None:
            return
        quiet = done["foreign"] <= LOAD_LIMIT
        if quiet or attempt == TRIES - 1:
            break
    entrant.loaded |= not quiet
    entrant.foreign = max(entrant.foreign, done["foreign"])
    entrant.seconds.append(done["seconds"])
    entrant.times.append(done["times"])
    entrant.tokens.append(sum(map(len, done["times"])))
    entrant.peak = max(entrant.peak, done["peak"])


def _base_of(entrant: Entrant, entrants: Sequence[Entrant]) -> Entrant | None:
    for other in entrants:
        if other.kind == f"dynkern-{entrant.dtype}" and other.policy == "full" and other.seconds:
            return other
    return None


def _measures(entrant: Entrant, base: Entrant | None) -> Row:
    spread = Spread.of(entrant.seconds)
    rows = [row for times in entrant.times for row in times if row]
    pairs = [gaps(row) for row in rows]
    each = [gap for own, _ in pairs for gap in own]
    waits = [wait for _, own in pairs for wait in own]
    rates = [n / s for n, s in zip(entrant.tokens, entrant.seconds, strict=True)]
    row: Row = {
        "seconds": spread.median,
        "low": spread.p20,
        "high": spread.p80,
        "tokens_per_second": Spread.of(rates).median,
        "peak_memory_bytes": entrant.peak,
        "mean_tokens": sum(entrant.tokens) / len(rows),
        "warm_up": entrant.warm_up,
        "rounds": len(entrant.seconds),
        "loaded": entrant.loaded,
        "foreign_load": entrant.foreign,
        "engine_version": entrant.worker.version,
    }
    if base is not None and base.obstacle is None:
        theirs = [n / s for n, s in zip(base.tokens, base.seconds, strict=True)]
        ratios = [a / b for a, b in zip(rates, theirs, strict=True)]
        row["speedup"] = Spread.of(ratios).median
    for name, share in SHARES.items():
        row[f"first_{name}"] = percentile([row[0] for row in rows], share)
        if each:
            row[f"token_{name}"] = percentile(each, share)
    if waits:
        row["wait_p99"] = percentile(waits, SHARES["p99"])
    return row


def latency_rows(
    checkpoint: Path,
    smaller: Mapping[str, Path],
    kinds: Sequence[str],
    policies: Sequence[str],
    cases: Sequence[Callable[[], list[list[int]]]],
    new_tokens: int,
    natural: bool,
    repeats: int,
    python: str,
    converted: Path,
    limit: float,
) -> Iterator[Row]:
    """Rows of every case. smaller: checkpoints of fewer layers by name, run at their full depth;
    cases: each makes the prompts of a round; converted, limit: of `Engine`.
    """
    workers: list[Engine] = []
    entrants: list[Entrant] = []
    try:
        for kind in kinds:
            own = kind.startswith("dynkern")
            places = {"": checkpoint, **(smaller if own else {})}
            for name, place in places.items():
                local = own or kind.startswith("hf")  # transformers is a dependency of dynkern's
                worker = Engine(kind, place, sys.executable if local else python, converted, limit)
                workers.append(worker)
                if worker.obstacle is not None:
                    note = {"note": worker.obstacle, "policy": name or "full"}
                    yield {"engine": kind, "dtype": kind.partition("-")[2], **note}
                    continue
                several = policies if own and not name else [name or "full"]
                entrants += [Entrant(kind, policy, worker, bool(name)) for policy in several]
        for fresh in cases:
            again = [Entrant(e.kind, e.policy, e.worker, e.smaller) for e in entrants]
            yield from compare(again, fresh, new_tokens, natural, repeats)
    finally:
        for worker in workers:
            worker.close()


def print_latencies(console: Console, rows: Sequence[Row]) -> None:
    """Print them, times in ms."""
    table = Table(title="bench.end_to_end, latency")
    for column in ("engine", "policy", "rows", "tok/s", "x full", "first p50", "p99"):
        table.add_column(column, overflow="fold")
    for column in ("token p50", "p95", "p99", "MB"):
        table.add_column(column)
    for row in rows:
        times = [row[f"first_{p}"] for p in ("p50", "p99")]
        times += [row[f"token_{p}"] for p in SHARES]
        ratio, rate, peak = row["speedup"], row["tokens_per_second"], row["peak_memory_bytes"]
        table.add_row(
            *(str(row[key]) for key in ("engine", "policy", "batch")),
            f"{rate:.1f}" if rate != "" else "",
            f"{ratio:.2f}" if ratio != "" else "",
            *(f"{1e3 * t:.2f}" if t != "" else "" for t in times),
            f"{peak / 1e6:.0f}" if peak != "" else "",
            style="dim" if row["loaded"] is True else None,
        )
    console.print(table)
    for row in rows:
        if row["note"]:
            what = f"{row['engine']}, {row['policy']}, {row['batch'] or 'all'} rows"
            console.print(f"{what}: {row['note']}", highlight=False)
