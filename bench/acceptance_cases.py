"""What GPU acceptance measures: copy-forward cases and one decode pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.device_timing import time_op
from dynkern import routes
from dynkern.cost import roofline_efficiency, roofline_of_passes
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.judgement import judge
from dynkern.evaluation.peaks import Peaks
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import interleave
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights
from dynkern.ops import kv_copy_forward, use_backend
from dynkern.policies import policy
from dynkern.runtime.engine import Engine, RunOptions
from dynkern.runtime.request import Request

# layers, heads, head size of the models whose caches are copied
SHAPES = {"1.3b": (24, 32, 64), "6.7b": (32, 32, 128), "tiny": (4, 2, 16)}
POSITIONS = 64


@dataclass(frozen=True)
class CopyCase:
    """A cache shape, a number of rows, and how skipped layers are spread."""

    shape: str
    rows: int
    skips: str

    def keep(self, num_layers: int) -> Tensor:
        """Keep bits [L, rows]."""
        if self.skips == "early_exit":
            route = routes.early_exit(num_layers, num_layers // 2 - 1)
            return route[:, None].expand(num_layers, self.rows).contiguous()
        if self.skips == "all_but_first":
            return routes.early_exit(num_layers, 0)[:, None].expand(num_layers, self.rows).clone()
        generator = torch.Generator().manual_seed(self.rows)
        scores = torch.rand((num_layers, self.rows), generator=generator)
        return routes.smallest_subset(scores, num_layers // 2)


def copy_cases(dry_run: bool) -> Iterator[CopyCase]:
    """The grid of step 5."""
    shapes, rows = (("tiny",), (1, 7)) if dry_run else (("1.3b", "6.7b"), (1, 8, 64, 256, 512))
    for shape in shapes:
        for count in rows:
            for skips in ("half_random", "all_but_first", "early_exit"):
                yield CopyCase(shape, count, skips)


def measure_copy(case: CopyCase, device: torch.device, repeats: int) -> dict[str, Any] | None:
    """Check a case bit for bit against the reference, then time it; None where memory is short."""
    num_layers, heads, size = SHAPES[case.shape]
    lanes = num_layers * case.rows
    # the cache as large as memory allows: beyond L2 every row's entry is cold
    positions = POSITIONS
    needed = 2 * lanes * heads * positions * size * 2
    if device.type == "cuda" and 2 * needed > torch.cuda.mem_get_info(device)[0]:
        return None
    k, v = (
        torch.randn(lanes, heads, positions, size, device=device).to(torch.bfloat16)
        for _ in range(2)
    )
    lane = torch.randperm(lanes).view(num_layers, case.rows).to(device, torch.int32)
    keep = case.keep(num_layers)
    source = routes.copy_source(keep, torch.ones(case.rows, dtype=torch.bool)).to(device)
    position = torch.randint(positions, (case.rows,), dtype=torch.int32).to(device)
    backend = "cuda" if device.type == "cuda" else "cpu"
    expected = k.clone(), v.clone()
    with use_backend("reference"):
        kv_copy_forward(*expected, lane, source, position)
    with use_backend(backend):
        kv_copy_forward(k, v, lane, source, position)
        if not (torch.equal(k, expected[0]) and torch.equal(v, expected[1])):
            raise AssertionError(f"{case}: {backend} differs from the reference")
        del expected
        times = time_op(lambda: kv_copy_forward(k, v, lane, source, position), device, repeats)
    copies = int((source >= 0).sum())
    # K and V, read and written
    moved = copies * heads * size * 2 * 4
    return {
        "case": f"kv_copy_forward {case.shape} {case.skips}",
        "rows": case.rows,
        "seconds": times.median,
        "p20": times.p20,
        "p80": times.p80,
        "bytes": moved,
        "bytes_per_second": moved / times.median,
    }


def random_engine(dry_run: bool, device: torch.device) -> Engine:
    """OPT-1.3B's shape in bfloat16 with random weights; a tiny one in float32 for a dry run."""
    layers, d, heads, ffn, vocab = (4, 64, 2, 128, 256) if dry_run else (24, 2048, 32, 8192, 50272)
    spec = DecoderSpec(
        vocab_size=vocab,
        num_layers=layers,
        hidden_size=d,
        num_heads=heads,
        ffn_size=ffn,
        max_positions=2048,
        embed_size=d,
        pre_norm=True,
        activation="relu",
        bias=True,
        norm_affine=True,
        final_norm=True,
        tied_head=True,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
    dtype = torch.float32 if dry_run else torch.bfloat16

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device) * 0.02

    def layer() -> LayerWeights:
        return LayerWeights(
            *(weight(d) + 1, weight(d)),
            *(weight(3 * d, d), weight(3 * d), weight(d, d), weight(d)),
            *(weight(d) + 1, weight(d)),
            *(weight(ffn, d), weight(ffn), weight(d, ffn), weight(d)),
        )

    embedding = weight(vocab, d)
    weights = DecoderWeights(
        token_embedding=embedding,
        position_embedding=weight(2050, d),
        project_in=None,
        project_out=None,
        layers=[layer() for _ in range(layers)],
        final_norm_weight=weight(d) + 1,
        final_norm_bias=weight(d),
        lm_head=embedding,
    )
    return Engine(spec, weights)


def measure_decode(
    engine: Engine, rows: int, new_tokens: int, repeats: int, peaks: Peaks
) -> list[dict[str, Any]]:
    """Decode passes at full, half and quarter depth, beside their possible time."""
    num_layers = engine.spec.num_layers
    specs = ["full", f"uniform:{num_layers // 2}", f"uniform:{max(1, num_layers // 4)}"]
    prompts = torch.randint(4, engine.spec.vocab_size, (rows, 64)).tolist()

    def case(spec: str):
        chosen = policy(spec)
        requests = [
            Request(i, tuple(p), chosen, new_tokens, frozenset([2]), force_length=True)
            for i, p in enumerate(prompts)
        ]
        return lambda: engine.run(requests, RunOptions(batch_size=rows))

    probe = EngineProbe(engine, [64 + new_tokens // 2], with_fill=False)
    calibration = Calibration(probe, sorted({1, rows}))
    timings = interleave({**calibration.cases, **{spec: case(spec) for spec in specs}}, repeats)
    element = engine.weights.token_embedding.element_size()
    found = []
    for spec in specs:
        passes = timings[spec].values[-1][-1].stats.passes
        judged = judge(timings, calibration, spec, "full")
        seconds = judged.seconds
        roofline = roofline_of_passes(
            engine.spec, passes, element, element, peaks.bandwidth, peaks.flops
        )
        found.append(
            {
                "case": f"decode {spec}",
                "rows": rows,
                "seconds": seconds.median / len(passes),
                "p20": seconds.p20 / len(passes),
                "p80": seconds.p80 / len(passes),
                "speedup": judged.speedup.median,
                "realisation": judged.realisation,
                "roofline_efficiency": roofline_efficiency(roofline, seconds.median),
                "loaded": bool(timings.loaded),
            }
        )
    return found
