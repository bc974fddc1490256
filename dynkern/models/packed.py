"""PackedWeights: a decoder's weights in the CPU engine's own layout, in one arena."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dynkern.kernels import native, native_engine
from dynkern.models.fingerprint import fingerprint
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import SourcePart
from dynkern.routes import check_choice

# rows of a panel: stacked parts start at a multiple of it
PANEL_ROWS = 64
_LINE = 64
_HUGE_PAGE = 2 << 20

_DTYPES = {
    torch.float32: native_engine.DTYPES["float32"],
    torch.bfloat16: native_engine.DTYPES["bfloat16"],
    torch.float16: native_engine.DTYPES["float16"],
    torch.float64: native_engine.DTYPES["float64"],
}
# bytes of one weight
_SIZES = {"float32": 4, "bfloat16": 2, "int8": 1}
_MODEL_NAMES = {
    "token_embedding": "token",
    "lm_head": "head",
    "position_embedding": "position",
}


@dataclass
class _Linear:
    """Where a linear lies: offsets into the arena (bytes) and the side buffer (floats)."""

    rows: int  # of one part
    k: int
    parts: int
    data: int
    scale: int | None
    bias: int | None

    @property
    def stride(self) -> int:
        """Rows from one part to the next."""
        return self.rows if self.parts == 1 else _round_up(self.rows, PANEL_ROWS)


class PackedWeights:
    """All weights of a decoder as csrc/cpu reads them; a `model` struct points into them.

    format: "float32", "bfloat16" or "int8", the storage of linear weights; norms, biases,
    positions and scales are float32. Made empty: `write` every SourcePart once, ahead of any pass.
    dtype: of the K/V cache (bfloat16 for int8). Raises ValueError on an unknown format,
    LibraryUnavailable where csrc/cpu is not there, MemoryError without room for the weights.
    """

    device = torch.device("cpu")

    def __init__(self, spec: DecoderSpec, format: str = "float32") -> None:
        check_choice("format", format, tuple(native_engine.FORMATS))
        self.spec, self.format = spec, format
        self.dtype = torch.float32 if format == "float32" else torch.bfloat16
        self._library = native.cpu_library()
        self._code = native_engine.FORMATS[format]
        self._linears: dict[tuple[int | None, str], _Linear] = {}
        self._vectors: dict[tuple[int | None, str], tuple[int, int]] = {}
        self._arena_size = self._side_size = 0
        self._lay_out()
        self._arena = self._allocate(self._arena_size)
        # zeros: the padding of stacked scales and biases is read
        side = torch.zeros(self._side_size + _LINE // 4)
        self._side = _aligned(side, _LINE)[: self._side_size]
        self._layers = (native_engine.Layer * spec.num_layers)()
        self.model = self._make_model()

    @property
    def element_size(self) -> int:
        """Bytes of one linear weight."""
        return _SIZES[self.format]

    @property
    def nbytes(self) -> int:
        """Bytes held by the weights, tied ones counted once."""
        return self._arena_size + self._side_size * 4

    def checksums(self) -> list[int]:
        """Numbers that tell models of one shape and format apart."""
        return [fingerprint(self._arena), fingerprint(self._side)]

    def write(self, part: SourcePart, tensor: Tensor) -> None:
        """Put a checkpoint's tensor at its place: any float dtype, on the CPU, of part.shape."""
        if tensor.dtype not in _DTYPES:
            tensor = tensor.float()
        linear, bias, vector = self._place(part.field, part.layer)
        if linear is not None and not bias:
            self._pack(linear, part.part, tensor)
            return
        start, size = vector
        if linear is not None:
            start, size = linear.bias + part.part * linear.stride, linear.rows
        self._side[start : start + size].copy_(tensor.reshape(-1))

    def read(self, field: str, layer: int | None = None) -> Tensor | None:
        """A field as it acts, in float32: linears [rows, k] dequantised, the rest flat, or None.

        field: a name of DecoderWeights, or with `layer` one of LayerWeights; q, k and v stacked.
        """
        if field == "lm_head" and self.spec.tied_head:
            field = "token_embedding"
        linear, bias, (start, size) = self._place(field, layer)
        if linear is None:
            return self._side[start : start + size].clone() if size else None
        rows = torch.arange(linear.parts)[:, None] * linear.stride + torch.arange(linear.rows)
        rows = rows.flatten()
        if bias:
            return None if linear.bias is None else self._side[linear.bias + rows]
        out = torch.empty(len(rows), linear.k)
        matrix = ctypes.byref(self._matrix(linear))
        self._library.dynkern_cpu_unpack(
            matrix, self._code, rows.data_ptr(), len(rows), out.data_ptr()
        )
        return out

    def _place(self, field: str, layer: int | None) -> tuple[_Linear | None, bool, tuple[int, int]]:
        """The linear that a field belongs to and whether as its bias; else start and size."""
        name = _MODEL_NAMES.get(field, field)
        if linear := self._linears.get((layer, name.removesuffix("_weight"))):
            return linear, False, (0, 0)
        if linear := self._linears.get((layer, name.removesuffix("_bias"))):
            return linear, True, (0, 0)
        return None, False, self._vectors.get((layer, name), (0, 0))

    def _lay_out(self) -> None:
        for (layer, name), n, k, parts, bias in _linears(self.spec):
            each = self._library.dynkern_cpu_packed_bytes(n, k, self._code)
            rows = n if parts == 1 else parts * _round_up(n, PANEL_ROWS)
            scale = self._take_side(rows) if self.format == "int8" else None
            self._linears[layer, name] = _Linear(
                n, k, parts, self._arena_size, scale, self._take_side(rows) if bias else None
            )
            self._arena_size += parts * each
        for key, size in _vectors(self.spec):
            self._vectors[key] = self._take_side(size), size

    def _take_side(self, size: int) -> int:
        start = self._side_size
        self._side_size += _round_up(size, _LINE // 4)
        return start

    def _allocate(self, size: int) -> Tensor:
        boundary = _HUGE_PAGE if size >= 2 * _HUGE_PAGE else _LINE
        try:
            whole = torch.empty(size + boundary, dtype=torch.uint8)
        except RuntimeError as error:  # of torch's allocator
            raise MemoryError(
                f"weights: out of memory for {size / 1e9:.1f} GB in {self.format}"
            ) from error
        arena = _aligned(whole, boundary)[:size]
        # ahead of the first write: pages are mapped when they are first touched
        self._library.dynkern_cpu_advise(arena.data_ptr(), size)
        return arena

    def _pack(self, linear: _Linear, part: int, tensor: Tensor) -> None:
        if tensor.stride(-1) != 1:
            tensor = tensor.contiguous()
        each = self._library.dynkern_cpu_packed_bytes(linear.rows, linear.k, self._code)
        scale = None
        if linear.scale is not None:
            scale = self._side[linear.scale + part * linear.stride :].data_ptr()
        result = self._library.dynkern_cpu_pack(
            tensor.data_ptr(),
            _DTYPES[tensor.dtype],
            linear.rows,
            linear.k,
            tensor.stride(0),
            self._code,
            self._arena.data_ptr() + linear.data + part * each,
            scale,
            torch.get_num_threads(),
        )
        native_engine.check_memory(result, f"packing a [{linear.rows}, {linear.k}] linear")

    def _make_model(self) -> native_engine.Model:
        spec = self.spec
        model = native_engine.Model(
            num_layers=spec.num_layers,
            hidden=spec.hidden_size,
            num_heads=spec.num_heads,
            head_size=spec.head_size,
            ffn=spec.ffn_size,
            vocab=spec.vocab_size,
            embed=spec.embed_size,
            n_positions=spec.max_positions + spec.position_offset,
            position_offset=spec.position_offset,
            pre_norm=spec.pre_norm,
            final_norm=spec.final_norm,
            activation=native_engine.ACTIVATIONS[spec.activation],
            format=self._code,
            kv_dtype=_DTYPES[self.dtype],
            norm_eps=spec.norm_eps,
            attention_scale=spec.attention_scale,
            layers=self._layers,
        )
        for (layer, name), linear in self._linears.items():
            owner = model if layer is None else self._layers[layer]
            setattr(owner, name, self._matrix(linear))
        if spec.tied_head:
            model.head = model.token
        for (layer, name), (start, _) in self._vectors.items():
            owner = model if layer is None else self._layers[layer]
            setattr(owner, name, self._side[start:].data_ptr())
        return model

    def _matrix(self, linear: _Linear) -> native_engine.Matrix:
        def side(start: int | None) -> int | None:
            return None if start is None else self._side[start:].data_ptr()

        return native_engine.Matrix(
            self._arena.data_ptr() + linear.data,
            side(linear.scale),
            side(linear.bias),
            linear.stride * linear.parts,
            linear.k,
        )


def _linears(spec: DecoderSpec) -> Iterator[tuple[tuple[int | None, str], int, int, int, bool]]:
    """Key, rows of a part, k, parts, and whether there is a bias, in the order of a pass."""
    d, e, f, vocab = spec.hidden_size, spec.embed_size, spec.ffn_size, spec.vocab_size
    yield (None, "token"), vocab, e, 1, False
    if e != d:
        yield (None, "project_in"), d, e, 1, False
    for layer in range(spec.num_layers):
        yield (layer, "qkv"), d, d, 3, spec.bias
        yield (layer, "out"), d, d, 1, spec.bias
        yield (layer, "fc1"), f, d, 1, spec.bias
        yield (layer, "fc2"), d, f, 1, spec.bias
    if e != d:
        yield (None, "project_out"), e, d, 1, False
    if not spec.tied_head:
        yield (None, "head"), vocab, e, 1, False


def _vectors(spec: DecoderSpec) -> Iterator[tuple[tuple[int | None, str], int]]:
    d = spec.hidden_size
    yield (None, "position"), (spec.max_positions + spec.position_offset) * d
    if not spec.norm_affine:
        return
    for layer in range(spec.num_layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield (layer, f"{norm}_weight"), d
            yield (layer, f"{norm}_bias"), d
    if spec.final_norm:
        yield (None, "final_norm_weight"), d
        yield (None, "final_norm_bias"), d


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _aligned(tensor: Tensor, boundary: int) -> Tensor:
    """The tensor from the first element on whose address is a multiple of `boundary` bytes."""
    return tensor[-tensor.data_ptr() % boundary // tensor.element_size() :]
