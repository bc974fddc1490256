"""Argument samples of every op: odd sizes, fresh random inputs, poison where nothing may be read.

A sample names the arguments that the op writes in place and says which entries of its outputs are
specified. Any backend can be held against the reference with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAN = float("nan")


@dataclass
class Sample:
    """args: the op's arguments. mutated: places in args that are written. rows: how many leading
    entries of each output are specified (None: all). whole: places of outputs that always are.
    """

    name: str
    args: list[Any]
    mutated: tuple[int, ...] = ()
    rows: int | None = None
    # index moves must be exact in any dtype
    exact: bool = False
    # outputs are probabilities and the like: errors count against 1, however small the outputs
    unit: bool = False
    whole: tuple[int, ...] = ()

    def specified(self, outputs: list[Tensor]) -> list[Tensor]:
        """The entries of each output that the contract specifies."""
        return [
            output if self.rows is None or place in self.whole else output[: self.rows]
            for place, output in enumerate(outputs)
        ]

    def to(self, device: str | torch.device, dtype: torch.dtype) -> list[Any]:
        """Fresh copies of the arguments; floats in `dtype`."""
        return [_to(value, device, dtype) for value in self.args]


def _to(value: Any, device: str | torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_to(item, device, dtype) for item in value]
    if not isinstance(value, Tensor):
        return value
    kind = dtype if value.is_floating_point() else value.dtype
    # memory_format keeps expanded or strided inputs from sharing storage with the sample
    return value.to(device=device, dtype=kind, copy=True).contiguous()


class _Maker:
    """Random tensors of one seed. Values are rounded to bfloat16, so that every dtype sees the same
    inputs and errors are the kernel's own.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        return values.to(torch.bfloat16).double()

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def rows(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator).to(torch.int32)

    def poisoned(self, tensor: Tensor, n: int) -> Tensor:
        """NaN from entry n on: rows that the contract forbids to read."""
        tensor = tensor.clone()
        tensor[n:] = NAN
        return tensor


def _count(n: int) -> Tensor:
    return torch.tensor(n, dtype=torch.int32)


# rows of a batch, active ones of them
ROWS = ((1, 1), (1, 0), (7, 3), (7, 7), (33, 20), (33, 0), (64, 64))


def _embed(make: _Maker) -> Iterator[Sample]:
    for rows, hidden, width in ((1, 60, 60), (7, 48, 20), (33, 111, 111)):
        project = None if width == hidden else make.normal(hidden, width)
        yield Sample(
            f"{rows}x{hidden}",
            [
                make.integers(50, rows),
                make.integers(30, rows),
                make.normal(50, width),
                make.normal(32, hidden),
                project,
                2,
            ],
        )


def _route_compact(make: _Maker) -> Iterator[Sample]:
    for layers, rows, chance in (
        (1, 1, 0.5),
        (3, 7, 0.5),
        (12, 33, 0.0),
        (5, 33, 1.0),
        (24, 64, 0.3),
    ):
        keep = torch.rand((layers, rows), generator=make.generator) < chance
        yield Sample(f"{layers}x{rows}@{chance}", [keep], exact=True)


def _residual_bypass_layer_norm(make: _Maker) -> Iterator[Sample]:
    for rows, n in ROWS:
        for norm, hidden, affine, with_delta in (
            ("pre", 60, True, True),
            ("pre", 111, False, True),
            ("pre", 48, True, False),
            ("post", 60, True, True),
            ("none", 48, True, True),
            ("none", 111, False, False),
        ):
            n_delta = (n * 2) % (rows + 1)
            delta = make.poisoned(make.normal(rows, hidden), n_delta)
            yield Sample(
                f"{norm}-{rows}/{n}x{hidden}-{'delta' if with_delta else 'plain'}",
                [
                    make.normal(rows, hidden, scale=2.0),
                    delta if with_delta else None,
                    make.rows(rows) if with_delta else None,
                    _count(n_delta) if with_delta else None,
                    make.normal(hidden) if affine else None,
                    make.normal(hidden) if affine else None,
                    make.rows(rows),
                    _count(n),
                    norm,
                    1e-5,
                ],
                mutated=(0,),
                rows=n,
            )


def _residual_bypass_layer_norm_gate(make: _Maker) -> Iterator[Sample]:
    for sample in _residual_bypass_layer_norm(make):
        if sample.rows in (0, 1, 3, 20):
            rows, hidden = sample.args[0].shape
            # away from 1/2, where rounding decides: these draws follow clear logits only
            uniform = make.integers(2, rows).double() * 0.999 if sample.rows == 3 else None
            gate = make.normal(2, hidden, scale=hidden**-0.5), make.normal(2), uniform
            sample.args += gate
            sample.whole = (1, 2)
            yield sample


def _residual_bypass_linear(make: _Maker) -> Iterator[Sample]:
    for place, sample in enumerate(_residual_bypass_layer_norm(make)):
        hidden, outputs = sample.args[0].shape[1], (111, 33)[place % 2]
        weight = make.normal(outputs, hidden, scale=hidden**-0.5)
        bias = make.normal(outputs) if place % 3 else None
        sample.args += [weight, bias, ("none", "relu", "gelu")[place % 3]]
        yield Sample(sample.name, sample.args, rows=sample.rows, whole=(0,))


def _ragged_linear(make: _Maker) -> Iterator[Sample]:
    for rows, n in ROWS:
        for k, m, activation, bias, gathered in (
            (60, 111, "none", True, True),
            (111, 60, "relu", True, False),
            (48, 33, "gelu", False, True),
        ):
            x = make.normal(rows, k)
            index = make.rows(rows) if gathered else None
            active = torch.arange(rows) if index is None else index
            x[active[n:].long()] = NAN
            yield Sample(
                f"{activation}-{rows}/{n}x{k}x{m}",
                [
                    x,
                    make.normal(m, k, scale=k**-0.5),
                    make.normal(m) if bias else None,
                    index,
                    _count(n),
                    activation,
                ],
                rows=n,
            )


def _ragged_attention_prefill(make: _Maker) -> Iterator[Sample]:
    for lengths, heads, size in (((1,), 3, 20), ((5, 1, 17), 3, 5), ((33, 2), 2, 64)):
        total = sum(lengths)
        ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        q, k, v = (make.normal(total, heads, size) for _ in range(3))
        yield Sample(f"{lengths}x{heads}x{size}", [q, k, v, ends, size**-0.5])


def _cache(make: _Maker, lanes: int, heads: int, positions: int, size: int) -> Tensor:
    return torch.full((lanes, heads, positions, size), NAN, dtype=torch.float64)


def _ragged_attention_decode(make: _Maker) -> Iterator[Sample]:
    for rows, n in ROWS:
        for heads, size, positions in ((3, 20, 9), (2, 5, 33), (2, 64, 40)):
            caches = [_cache(make, rows + 2, heads, positions, size) for _ in range(2)]
            lane = torch.randperm(rows + 2, generator=make.generator)[:rows].to(torch.int32)
            length = make.integers(positions, rows).to(torch.int32)
            length[0] = positions - 1
            for row in range(rows):
                filled = (heads, int(length[row]), size)
                for cache in caches:
                    cache[lane[row], :, : length[row]] = make.normal(*filled)
            q, k, v = (make.poisoned(make.normal(rows, heads, size), n) for _ in range(3))
            yield Sample(
                f"{rows}/{n}x{heads}x{positions}x{size}",
                [q, k, v, *caches, lane, length, make.rows(rows), _count(n), size**-0.5],
                mutated=(3, 4),
                rows=n,
            )


def _kv_project(make: _Maker) -> Iterator[Sample]:
    for rows, n in ROWS:
        heads, size, positions = 3, 20, 11
        hidden = heads * size
        places = torch.randperm((rows + 1) * positions, generator=make.generator)[:rows]
        yield Sample(
            f"{rows}/{n}",
            [
                make.poisoned(make.normal(rows, hidden), n),
                make.normal(2 * hidden, hidden, scale=hidden**-0.5),
                make.normal(2 * hidden) if rows != 7 else None,
                _cache(make, rows + 1, heads, positions, size),
                _cache(make, rows + 1, heads, positions, size),
                (places // positions).to(torch.int32),
                (places % positions).to(torch.int32),
                _count(n),
            ],
            mutated=(3, 4),
        )


def _kv_copy_forward(make: _Maker) -> Iterator[Sample]:
    from dynkern.routes import copy_source

    for layers, rows, chance in ((1, 1, 1.0), (6, 7, 0.5), (12, 33, 0.2), (5, 7, 1.0)):
        heads, size, positions = 3, 5, 7
        keep = torch.rand((layers, rows), generator=make.generator) < chance
        keep[-1] |= ~keep.any(dim=0)
        alive = torch.rand(rows, generator=make.generator) < 0.8
        lane = torch.randperm(layers * rows, generator=make.generator).view(layers, rows)
        lane[0, 0] = -1
        shape = (layers * rows, heads, positions, size)
        yield Sample(
            f"{layers}x{rows}@{chance}",
            [
                make.normal(*shape),
                make.normal(*shape),
                lane.to(torch.int32),
                copy_source(keep, alive),
                make.integers(positions, rows).to(torch.int32),
            ],
            mutated=(0, 1),
            exact=True,
        )


def _gate(make: _Maker) -> Iterator[Sample]:
    for rows, widths, sampled in (
        (1, (60, 2), False),
        (7, (48, 11, 2), True),
        (33, (111, 8, 9, 2), False),
    ):
        weights = [
            make.normal(b, a, scale=a**-0.5) for a, b in zip(widths, widths[1:], strict=False)
        ]
        biases = [make.normal(b) for b in widths[1:]]
        # away from 1/2, where rounding decides: these draws follow clear logits only
        uniform = make.integers(2, rows).double() * 0.999 if sampled else None
        yield Sample(f"{rows}x{widths}", [make.normal(rows, widths[0]), weights, biases, uniform])


def _lm_head_argmax(make: _Maker) -> Iterator[Sample]:
    for rows, n in ROWS:
        weight = make.normal(131, 48, scale=0.2)
        yield Sample(
            f"{rows}/{n}",
            [make.poisoned(make.normal(rows, 48), n), weight, _count(n)],
            rows=n,
            unit=True,
        )


def _sample(make: _Maker) -> Iterator[Sample]:
    for rows, settings in (
        (1, (0.0, 0, 1.0, 1.0)),
        (7, (1.0, 0, 1.0, 1.0)),
        (7, (0.7, 5, 1.0, 1.3)),
        (33, (1.5, 0, 0.8, 1.0)),
        (33, (1.0, 40, 0.9, 0.8)),
    ):
        history = make.integers(131, rows, 9)
        history[:, 5:] = -1
        yield Sample(
            f"{rows}-{settings}",
            [
                make.normal(rows, 131, scale=3.0),
                history if settings[3] != 1.0 else None,
                torch.arange(rows),
                make.integers(50, rows),
                11,
                *settings,
            ],
        )


MAKERS: dict[str, Callable[[_Maker], Iterator[Sample]]] = {
    "embed": _embed,
    "route_compact": _route_compact,
    "residual_bypass_layer_norm": _residual_bypass_layer_norm,
    "residual_bypass_layer_norm.gate": _residual_bypass_layer_norm_gate,
    "residual_bypass_linear": _residual_bypass_linear,
    "ragged_linear": _ragged_linear,
    "ragged_attention.prefill": _ragged_attention_prefill,
    "ragged_attention.decode": _ragged_attention_decode,
    "kv_project": _kv_project,
    "kv_copy_forward": _kv_copy_forward,
    "gate": _gate,
    "lm_head_argmax": _lm_head_argmax,
    "sample": _sample,
}


def samples(label: str, seed: int = 0) -> list[Sample]:
    """The samples of an op, by its label in the table."""
    made = list(MAKERS[label](_Maker(seed)))
    for sample in made:
        sample.name += f" (seed {seed})"
    return made
