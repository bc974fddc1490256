"""What is measured: shapes, rows, routes, dtypes, and the selection of them that takes minutes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from dynkern import routes


@dataclass(frozen=True)
class Sizes:
    """One model's sizes."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int

    @property
    def head(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "tiny": Sizes(64, 4, 2, 128, 320),
    "125m": Sizes(768, 12, 12, 3072, 50272),
    "1.3b": Sizes(2048, 24, 32, 8192, 50272),
    "6.7b": Sizes(4096, 32, 32, 16384, 50272),
}
MODELS = tuple(name for name in SHAPES if name != "tiny")
# no op takes int8: those weights are the CPU engine's (bench.end_to_end)
DTYPES = ("float32", "bfloat16", "float16")
ROWS = (1, 4, 8, 32, 64, 128, 512)
ROUTES = ("all", "none", "half", "bimodal", "straggler")
# calls of each op: several where one op serves products or settings that differ
NAMES = {
    "embed": ("",),
    "route_compact": ("",),
    "residual_bypass_layer_norm": ("",),
    "residual_bypass_layer_norm.gate": ("",),
    "residual_bypass_linear": ("fc1",),
    "ragged_linear": ("qkv", "out", "fc1", "fc2"),
    "ragged_attention.prefill": ("",),
    "ragged_attention.decode": ("",),
    "kv_project": ("",),
    "kv_copy_forward": ("",),
    "gate": ("",),
    "lm_head_argmax": ("",),
    "sample": ("temperature", "top-k and top-p"),
}
# ops that work on the rows of a layer; the others see every row whatever the routes
ROUTED = (
    "route_compact",
    "residual_bypass_layer_norm",
    "residual_bypass_layer_norm.gate",
    "residual_bypass_linear",
    "ragged_linear",
    "ragged_attention.decode",
    "kv_project",
    "kv_copy_forward",
)
# ops whose time is that of reading weights or K/V
STREAMING = (
    "residual_bypass_linear",
    "ragged_linear",
    "ragged_attention.decode",
    "kv_project",
    "lm_head_argmax",
)


def active(kind: str, layers: int, rows: int) -> Tensor:
    """bool [layers, rows]: the rows that an op works on, layer by layer. Fresh at each call.

    all, none: every row, no row. half: each row in half of the layers, at random. bimodal: every
    other row in all layers, the rest in a quarter of them, evenly spread. straggler: one row in all
    layers, the rest in the first quarter.
    """
    bits = torch.zeros(layers, rows, dtype=torch.bool)
    quarter = max(1, layers // 4)
    if kind == "all":
        bits[:] = True
    elif kind == "half":
        bits = routes.smallest_subset(torch.rand(layers, rows), layers // 2)
    elif kind == "bimodal":
        bits[:] = routes.uniform(layers, quarter)[:, None]
        bits[:, ::2] = True
    elif kind == "straggler":
        bits[:quarter] = True
        bits[:, torch.randint(rows, ())] = True
    elif kind != "none":
        raise ValueError(f"routes: got {kind!r}, expected one of {', '.join(ROUTES)}")
    return bits


@dataclass(frozen=True)
class Spec:
    """One case of the grid."""

    op: str
    name: str
    shape: str
    dtype: str
    rows: int
    routes: str

    def __str__(self) -> str:
        call = f"{self.op} {self.name}".strip()
        return f"{call}, {self.shape}, {self.dtype}, {self.rows} rows, {self.routes}"

    @property
    def sizes(self) -> Sizes:
        return SHAPES[self.shape]


@dataclass(frozen=True)
class Part:
    """A product of the grid. names: of an op's calls, instead of all of them."""

    ops: Sequence[str]
    shapes: Sequence[str]
    dtypes: Sequence[str]
    rows: Sequence[int]
    routes: Sequence[str] = ("all",)
    names: Sequence[str] | None = None

    def specs(self) -> Iterator[Spec]:
        for shape, dtype, rows, kind, op in product(
            self.shapes, self.dtypes, self.rows, self.routes, self.ops
        ):
            if kind != "all" and op not in ROUTED:
                continue
            for name in NAMES[op]:
                if self.names is None or name in self.names or len(NAMES[op]) == 1:
                    yield Spec(op, name, shape, dtype, rows, kind)


_OPS = tuple(NAMES)
_MANY = tuple(op for op in _OPS if op not in ("sample", "ragged_attention.prefill"))
# some six minutes on two cores, what matters most first: about 2.2 s a case, 1.5 of them metered
DEFAULT = (
    Part(_OPS, ["125m"], ["bfloat16", "float32"], [1, 8, 64]),
    Part(ROUTED, ["125m"], ["bfloat16"], [32], ROUTES[1:], names=["fc1"]),
    Part(STREAMING, ["1.3b"], ["bfloat16"], [8]),
    Part(STREAMING, ["6.7b"], ["bfloat16"], [1], names=["fc1"]),
    # 512 prompts, or draws from 512 vocabularies, take the reference seconds a call
    Part(_MANY, ["125m"], ["bfloat16"], [512]),
)


@dataclass(frozen=True)
class Selection:
    """What of the grid is asked for; None where nothing was said.

    Without shapes, dtypes, rows and routes: DEFAULT, or the whole grid under `everything`. With any
    of them: their product, the rest as in `quick`, `everything` or a short list.
    """

    ops: Sequence[str] | None = None
    shapes: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    rows: Sequence[int] | None = None
    routes: Sequence[str] | None = None
    everything: bool = False
    quick: bool = False

    def specs(self) -> list[Spec]:
        """The cases, what matters most first."""
        ops = tuple(self.ops or _OPS)
        given = (self.shapes, self.dtypes, self.rows, self.routes)
        if not any(given) and not self.everything and not self.quick:
            return [spec for part in DEFAULT for spec in part.specs() if spec.op in ops]
        if self.everything:
            rest = (MODELS, DTYPES, ROWS, ROUTES)
        elif self.quick:
            rest = (("125m",), ("bfloat16",), (8,), ("all", "half"))
        else:
            rest = (("125m",), ("bfloat16", "float32"), (1, 8, 64), ("all",))
        axes = [asked or default for asked, default in zip(given, rest, strict=True)]
        return list(Part(ops, *axes).specs())
