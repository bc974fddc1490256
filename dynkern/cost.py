"""What a decode pass ought to cost: possible time, realisation, saved fraction, roofline.

Plain arithmetic on counts and measured times. Times are seconds, sizes bytes; nothing is measured
here (evaluation/timing.py does that).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

# less than this share of the full time to gain, and noise decides the saved fraction: "n/a"
LEAST_SAVABLE = 0.05
MIXED_BATCH_LIMIT = 1.02


@dataclass(frozen=True)
class PassCount:
    """What one decode pass executed, counted where layers run.

    rows: alive rows, all of which pass through embedding and LM head. layer_rows: for each layer,
    the rows that ran it. fill_rows: for each layer, the tokens whose K/V was filled by projection
    (() if none). head_rows: rows through the LM head beyond one of each alive row: those that an
    exit layer asked it about and that went on. length: mean K/V entries of the alive rows before
    the pass.
    """

    rows: int
    layer_rows: tuple[int, ...]
    fill_rows: tuple[int, ...] = ()
    head_rows: int = 0
    length: float = 0.0

    @property
    def union(self) -> int:
        """Layers that at least one row ran: those whose weights had to be read."""
        return sum(1 for n in self.layer_rows if n)

    def at_full_depth(self) -> PassCount:
        """The same rows at the same lengths, running every layer."""
        return PassCount(self.rows, (self.rows,) * len(self.layer_rows), length=self.length)


@dataclass(frozen=True)
class LayerTimes:
    """Measured time of one part (say a layer) by rows: tau(n), with tau(0) = 0.

    rows: distinct positive row counts, ascending. seconds: what each took, at least 0. Call it
    with a row count; in between it interpolates linearly. More rows never take less work, so
    where noise made a larger count look faster, `seconds` keeps the nearest monotone series
    (least squares: unlike a running maximum it does not favour slow readings).

    ValueError outside the measured row counts, 0 apart: weight traffic makes 1 row cost about as
    much as 8, so a line drawn from 0 would be wrong by that factor.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        rows, seconds = tuple(self.rows), tuple(self.seconds)
        if not rows or rows[0] < 1 or any(a >= b for a, b in zip(rows, rows[1:], strict=False)):
            raise ValueError(f"rows: got {list(rows)}, expected ascending positive row counts")
        if len(seconds) != len(rows):
            raise ValueError(f"seconds: got {len(seconds)} for {len(rows)} row counts")
        if not all(math.isfinite(s) and s >= 0 for s in seconds):
            raise ValueError(f"seconds: got {list(seconds)}, expected finite times of 0 or more")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "seconds", _nearest_monotone(seconds))

    def __call__(self, n: int) -> float:
        """Seconds for n rows. ValueError beyond the measured row counts."""
        if n == 0:
            return 0.0
        if not self.rows[0] <= n <= self.rows[-1]:
            raise ValueError(
                f"rows: got {n}, expected 0 or a count within the measured "
                f"{self.rows[0]} to {self.rows[-1]}"
            )
        after = bisect_left(self.rows, n)
        if self.rows[after] == n:
            return self.seconds[after]
        (n0, n1), (t0, t1) = self.rows[after - 1 : after + 1], self.seconds[after - 1 : after + 1]
        return t0 + (t1 - t0) * (n - n0) / (n1 - n0)


def _nearest_monotone(values: Sequence[float]) -> tuple[float, ...]:
    """Isotonic regression by pooling adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] * count > total * pools[-1][1]:
            last_total, last_count = pools.pop()
            total, count = total + last_total, count + last_count
        pools.append((total, count))
    return tuple(total / count for total, count in pools for _ in range(count))


@dataclass(frozen=True)
class CostModel:
    """Possible time of decode passes from parts measured on the same engine in the same run.

    fixed: embedding, final norm and LM head by rows. layer: one layer by the rows that run it.
    fill: one layer's K/V projection by the tokens it fills, None if not measured. head: final norm
    and LM head by rows at an exit layer; None takes `fixed`, larger only by the embedding's
    gather. length: K/V length at which `layer` was measured. loaded: other processes disturbed the
    measurement; metered: whether that could be seen at all.

    A layer's time grows linearly in the K/V length, so measuring it at the mean length of the
    passes to be judged makes their sum right.
    """

    fixed: LayerTimes
    layer: LayerTimes
    fill: LayerTimes | None = None
    head: LayerTimes | None = None
    length: float | None = None
    loaded: bool = False
    metered: bool = True

    def pass_time(self, count: PassCount) -> float:
        """t_fixed + sum of tau(n) over the layers + fill + exit heads, in seconds.

        Exit heads are charged in the fewest calls that can serve their rows; where they were
        served in more, the pass looks less than realised, never more. ValueError for a pass that
        fills K/V when `fill` was not measured, and beyond the measured row counts.
        """
        seconds = self.fixed(count.rows) + sum(self.layer(n) for n in count.layer_rows)
        if any(count.fill_rows):
            if self.fill is None:
                raise ValueError("fill: not measured, expected its times for a pass that fills K/V")
            seconds += sum(self.fill(n) for n in count.fill_rows)
        if count.head_rows:
            head = self.head or self.fixed
            calls, rest = divmod(count.head_rows, count.rows)
            seconds += calls * head(count.rows) + head(rest)
        return seconds

    def possible_time(self, passes: Iterable[PassCount]) -> float:
        """Seconds of all passes, if nothing were lost between kernels."""
        return math.fsum(self.pass_time(count) for count in passes)

    def full_time(self, passes: Iterable[PassCount]) -> float:
        """Possible seconds of the same passes, had every row run every layer."""
        return self.possible_time(count.at_full_depth() for count in passes)


def realisation(possible: float, measured: float) -> float:
    """possible / measured: 1 = nothing lost between kernels. ValueError unless both positive."""
    return _positive("possible", possible) / _positive("measured", measured)


def saved_fraction(full: float, measured: float, possible: float) -> float | None:
    """(full - measured) / (full - possible): share of what could be saved that was.

    0: computed everything and masked; below 0: slower than full depth. None ("n/a") where less
    than 5 % of `full` can be saved at all. ValueError unless all are positive.
    """
    full, measured = _positive("full", full), _positive("measured", measured)
    if _positive("possible", possible) > (1 - LEAST_SAVABLE) * full:
        return None
    return (full - measured) / (full - possible)


def speedup(full: float, measured: float) -> float:
    """full / measured; with the possible time for `measured`, the speed-up predicted."""
    return _positive("full", full) / _positive("measured", measured)


@dataclass(frozen=True)
class MixedBatch:
    """A mixed batch beside its full depth: ratio of times, and whether it keeps the promise."""

    ratio: float
    limit: float

    @property
    def within(self) -> bool:
        """Never slower than full depth x limit."""
        return self.ratio <= self.limit


def mixed_batch(full: float, measured: float, limit: float = MIXED_BATCH_LIMIT) -> MixedBatch:
    """Compare a mixed batch's seconds with full depth's; a value to report, no assertion."""
    return MixedBatch(_positive("measured", measured) / _positive("full", full), limit)


def expected_union(keep: float, rows: int) -> float:
    """1 - (1 - keep)^rows: how often a layer's weights are read for a batch.

    keep: probability that one row runs the layer, independently of the others. At 0.5 and 8 rows
    99.6 %: skipping half the layers at random saves next to no weight traffic.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep: got {keep}, expected a probability from 0 to 1")
    if rows < 0:
        raise ValueError(f"rows: got {rows}, expected 0 or more")
    return 1 - (1 - keep) ** rows


class DecoderShape(Protocol):
    """What the roofline reads of a DecoderSpec (models/spec.py)."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def ffn_size(self) -> int: ...
    @property
    def embed_size(self) -> int: ...
    @property
    def bias(self) -> bool: ...
    @property
    def norm_affine(self) -> bool: ...
    @property
    def final_norm(self) -> bool: ...


@dataclass(frozen=True)
class PartCost:
    """Bytes that a part of a pass must move, and floating-point operations it must do."""

    name: str
    bytes: float
    flops: float


def part_costs(
    spec: DecoderShape, count: PassCount, weight_bytes: float, kv_bytes: float
) -> list[PartCost]:
    """Least work of each part of a pass; a multiply-add is two operations.

    weight_bytes: bytes of one weight; kv_bytes: of one K/V element. Parts: embedding; for each
    layer its linears (weights read once if any row runs it, only the k and v rows where it merely
    fills) and its attention (K/V of the rows that run it read, new entries written); the LM head,
    read once; exit heads. Activations, norms and softmax are left out: they stay in cache and are
    under 1 % of the operations at OPT's widths. Reading every row's mean `length` overstates the
    attention of rows with holes (kv_fill mask) and of cohorts whose shorter rows run deeper.
    ValueError if the counts do not fit the spec.
    """
    for name, rows in (("layer_rows", count.layer_rows), ("fill_rows", count.fill_rows)):
        if len(rows) != spec.num_layers and (rows or name == "layer_rows"):
            raise ValueError(f"{name}: got {len(rows)} layers, expected {spec.num_layers}")
    hidden, ffn, embed = spec.hidden_size, spec.ffn_size, spec.embed_size
    norm = 2 * hidden if spec.norm_affine else 0
    kv_weights = 2 * hidden * hidden
    matrices = 2 * kv_weights + 2 * hidden * ffn
    layer_weights = matrices + 2 * norm + (5 * hidden + ffn if spec.bias else 0)
    fill_weights = kv_weights + norm + (2 * hidden if spec.bias else 0)

    project = hidden * embed if embed != hidden else 0
    gathered = count.rows * (embed + hidden)
    parts = [
        PartCost(
            "embedding",
            (gathered + (project if count.rows else 0)) * weight_bytes,
            2 * count.rows * project,
        )
    ]
    fills = count.fill_rows or (0,) * spec.num_layers
    for layer, (rows, fill) in enumerate(zip(count.layer_rows, fills, strict=True)):
        read = layer_weights if rows else fill_weights if fill else 0
        parts.append(
            PartCost(
                f"layer {layer} linears",
                read * weight_bytes + fill * 2 * hidden * kv_bytes,
                2 * (rows * matrices + fill * kv_weights),
            )
        )
        entries = rows * (count.length + 1)
        parts.append(
            PartCost(
                f"layer {layer} attention", entries * 2 * hidden * kv_bytes, 4 * entries * hidden
            )
        )

    head = spec.vocab_size * embed + project
    head_read = (head + (norm if spec.final_norm else 0)) * weight_bytes
    parts.append(PartCost("head", head_read if count.rows else 0, 2 * count.rows * head))
    if count.head_rows:
        calls = -(-count.head_rows // max(count.rows, 1))
        parts.append(PartCost("exit heads", calls * head_read, 2 * count.head_rows * head))
    return parts


def roofline_time(parts: Iterable[PartCost], bandwidth: float, peak: float) -> float:
    """Sum over parts of max(bytes / bandwidth, flops / peak), in seconds.

    bandwidth: bytes/s; peak: operations/s; both read in the same run (evaluation/peaks.py).
    """
    _positive("bandwidth", bandwidth)
    _positive("peak", peak)
    return math.fsum(max(part.bytes / bandwidth, part.flops / peak) for part in parts)


def roofline_of_passes(
    spec: DecoderShape,
    passes: Iterable[PassCount],
    weight_bytes: float,
    kv_bytes: float,
    bandwidth: float,
    peak: float,
) -> float:
    """`roofline_time` of all passes together, in seconds."""
    return math.fsum(
        roofline_time(part_costs(spec, count, weight_bytes, kv_bytes), bandwidth, peak)
        for count in passes
    )


def roofline_model(
    spec: DecoderShape,
    rows: int,
    length: float,
    weight_bytes: float,
    kv_bytes: float,
    bandwidth: float,
    peak: float,
) -> CostModel:
    """A CostModel of what the roofline allows, for up to `rows` rows of K/V length `length`: for
    choices that must be made before anything is measured.
    """
    fixed, layer = [], []
    for n in range(1, rows + 1):
        count = PassCount(n, (n,) * spec.num_layers, length=length)
        parts = part_costs(spec, count, weight_bytes, kv_bytes)
        layers = [part for part in parts if part.name.startswith("layer ")]
        others = [part for part in parts if not part.name.startswith("layer ")]
        layer.append(roofline_time(layers, bandwidth, peak) / spec.num_layers)
        fixed.append(roofline_time(others, bandwidth, peak))
    counts = tuple(range(1, rows + 1))
    return CostModel(
        LayerTimes(counts, tuple(fixed)), LayerTimes(counts, tuple(layer)), length=length
    )


def roofline_efficiency(roofline: float, measured: float) -> float:
    """roofline / measured: 1 = at the machine's limit. ValueError unless both are positive.

    Shown for full depth and routed alike: a slow full depth must not pass for a fast route.
    """
    return _positive("roofline", roofline) / _positive("measured", measured)


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: got {value}, expected a positive number")
    return value
