"""Calibration: the parts of a decode pass, timed in the same rounds as the runs that they judge.

A machine's speed drifts by 15 % within minutes, so parts measured ahead of the runs and runs
measured later cannot be compared; parts and runs of one round can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dynkern.cost import CostModel, LayerTimes
from dynkern.evaluation.timing import Spread, Timings, interleave

# full passes in a row: alternating single passes of different row counts evicted each other's K/V
# and made a 43 MB model's layers look 1.2 times slower than decoding finds them
BURST = 6
# of the fixed part and of fills: whoever calls after a pause finds threads asleep, whose waking
# took 0.45 ms on two virtual cores, where the head of an OPT-125m in int8 takes 0.97
PART_BURST = 12


class PassProbe(Protocol):
    """An engine's parts of a decode pass, to be timed apart; each returns when its work is done.

    Parts run at the K/V length that the probe was built for. kv_fill_part may be None. A probe that
    can do several of them as decoding does, without a pause, also has full_passes(n_rows, count),
    fixed_parts(n_rows, count), and kv_fill_parts(n_rows, fixed_rows, count): fills, each before a
    fixed part of fixed_rows.
    """

    num_layers: int
    kv_fill_part: Callable[[int], None] | None

    def full_pass(self, n_rows: int) -> None:
        """One full-depth decode pass for n_rows rows."""

    def fixed_part(self, n_rows: int) -> None:
        """Only embedding, final norm and LM head for n_rows rows."""


class Calibration:
    """Cases to be timed, and the CostModel that comes of them.

    tau(n) = (T_full(n) - T_fixed(n)) / num_layers comes from full-depth passes only, never from
    routed ones: an engine that computes every layer and masks cannot hide there. Full passes of
    one row count follow each other `burst` at a time, as in decoding, and so do PART_BURST of the
    other parts. kv_fill_part(n) must fill n tokens at *every* layer; it is divided by num_layers
    like tau (one layer over and over would read its weights from cache). A fixed part goes behind
    each fill, and is taken off again: in a row, fills of all layers of a small model would find
    their weights in a cache, too (14 MB of an OPT-125m in int8: a third of the time).

    row_counts: include 1 and the batch size, since nothing is extrapolated. fill_row_counts: tokens
    filled at once, by default row_counts (kv_fill deferred fills more than a batch has rows).
    length: stamped into the model. ValueError on bad counts.
    """

    def __init__(
        self,
        probe: PassProbe,
        row_counts: Sequence[int],
        *,
        fill_row_counts: Sequence[int] | None = None,
        length: float | None = None,
        burst: int = BURST,
    ) -> None:
        self.num_layers, self.length, self.burst = probe.num_layers, length, burst
        self.rows = _counts("row_counts", row_counts)
        fill_part = getattr(probe, "kv_fill_part", None)
        wanted = fill_row_counts or self.rows
        self.fill_rows = _counts("fill_row_counts", wanted) if fill_part else ()
        self.cases: dict[str, Callable[[], None]] = {}
        for n in sorted({*self.rows, *self.fill_rows}):
            # a small LM head may still be in cache from the pass before: t_fixed then reads low,
            # tau high, and the possible time low, so that realisation errs against the engine
            if n in self.rows:
                self.cases[f"full pass, {n} rows"] = _in_a_row(
                    getattr(probe, "full_passes", None), (n,), burst, [(probe.full_pass, n)]
                )
            if n in self.fill_rows:
                first = self.rows[0]
                pair = [(probe.kv_fill_part, n), (probe.fixed_part, first)]
                self.cases[f"K/V fill, {n} rows"] = _in_a_row(
                    getattr(probe, "kv_fill_parts", None), (n, first), PART_BURST, pair
                )
            if n in self.rows:
                self.cases[f"fixed part, {n} rows"] = _in_a_row(
                    getattr(probe, "fixed_parts", None), (n,), PART_BURST, [(probe.fixed_part, n)]
                )

    def model(self, timings: Timings[Any], round_index: int | None = None) -> CostModel:
        """The CostModel of one round of `timings`, or of the medians over all rounds."""

        def seconds(case: str) -> tuple[float, ...]:
            every = timings[case].seconds
            return every if round_index is None else (every[round_index],)

        def fixed(n: int) -> tuple[float, ...]:
            return tuple(s / PART_BURST for s in seconds(f"fixed part, {n} rows"))

        def layer(n: int) -> float:
            pairs = zip(seconds(f"full pass, {n} rows"), fixed(n), strict=True)
            shares = [(full / self.burst - own) / self.num_layers for full, own in pairs]
            # noise may make layers look free on a model that is nearly all head; time never is
            return max(0.0, Spread.of(shares).median)

        def fill(n: int) -> float:
            pairs = zip(seconds(f"K/V fill, {n} rows"), fixed(self.rows[0]), strict=True)
            shares = [(both / PART_BURST - own) / self.num_layers for both, own in pairs]
            return max(0.0, Spread.of(shares).median)

        def times(counts: Sequence[int], of: Callable[[int], float]) -> LayerTimes:
            return LayerTimes(tuple(counts), tuple(of(n) for n in counts))

        return CostModel(
            fixed=times(self.rows, lambda n: Spread.of(fixed(n)).median),
            layer=times(self.rows, layer),
            fill=times(self.fill_rows, fill) if self.fill_rows else None,
            length=self.length,
            loaded=any(timings[case].loaded for case in self.cases),
            metered=timings.metered,
        )


def _in_a_row(
    together: Callable[..., None] | None,
    rows: tuple[int, ...],
    count: int,
    parts: Sequence[tuple[Callable[[int], None], int]],
) -> Callable[[], None]:
    """`count` times the parts, one behind the other: by together(*rows, count) where there is that,
    else part by part.
    """
    if together is not None:
        return lambda: together(*rows, count)

    def repeat() -> None:
        for _ in range(count):
            for part, n in parts:
                part(n)

    return repeat


def calibrate(
    probe: PassProbe, row_counts: Sequence[int], repeats: int = 5, **options: Any
) -> CostModel:
    """Calibrate apart from any run. options: those of Calibration, and of `interleave`."""
    own = {k: options.pop(k) for k in ("fill_row_counts", "length", "burst") if k in options}
    calibration = Calibration(probe, row_counts, **own)
    return calibration.model(interleave(calibration.cases, repeats, **options))


def _counts(name: str, counts: Sequence[int]) -> tuple[int, ...]:
    distinct = tuple(sorted(set(counts)))
    if not distinct or distinct[0] < 1:
        raise ValueError(f"{name}: got {list(counts)}, expected positive row counts")
    return distinct
