"""K/V of prompts to another place, on the engine's threads (csrc/cpu/copy_kv.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.native_engine import CopyKv, check_memory

Pair = tuple[Tensor, Tensor]


def copies(source: Pair, target: Pair) -> bool:
    """Whether `copy_kv` takes these tensors: on the host, of one dtype, heads contiguous."""
    # asked for every prompt: spelled out, it takes a third of the time that loops do
    (k, v), (to_k, to_v) = source, target
    return (
        k.device.type == v.device.type == to_k.device.type == to_v.device.type == "cpu"
        and k.dtype == v.dtype == to_k.dtype == to_v.dtype
        and k.stride() == v.stride()
        and to_k.stride() == to_v.stride()
        and k.stride(3) == to_k.stride(3) == 1
        and native.cpu_missing() is None
    )


def copy_kv(source: Pair, target: Pair, layers: Sequence[int], places: Sequence[int]) -> None:
    """target[places[i]] = source[layers[i]], for keys and values.

    source: [L, n, H, Dh] each; target: [N, n, H, Dh] each, at any strides. places: distinct. Where
    `copies` says no, torch copies.
    """
    if not copies(source, target):
        _copy(source, target, list(layers), list(places))
        return
    keys, _ = source
    size = keys.element_size()
    n = len(layers)
    index = (ctypes.c_int64 * (2 * n))(*layers, *places)
    arguments = CopyKv(
        torch.get_num_threads(),
        n,
        *keys.shape[1:3],
        keys.shape[3] * size,
        ctypes.addressof(index),
        ctypes.addressof(index) + n * ctypes.sizeof(ctypes.c_int64),
        *(tensor.data_ptr() for tensor in source),
        *(stride * size for stride in keys.stride()[:3]),
        *(tensor.data_ptr() for tensor in target),
        *(stride * size for stride in target[0].stride()[:3]),
    )
    result = native.cpu_library().dynkern_cpu_copy_kv(ctypes.byref(arguments))
    check_memory(result, f"K/V of {keys.shape[1]} tokens in {n} layers")


def _copy(source: Pair, target: Pair, layers: list[int], places: list[int]) -> None:
    device = target[0].device
    first = places[0] if places else 0
    # places in a row, as they mostly are, take a quarter of the time that an index does
    in_a_row = places == list(range(first, first + len(places)))
    at = slice(first, first + len(places)) if in_a_row else torch.tensor(places, device=device)
    if layers != list(range(len(source[0]))):
        kept = torch.tensor(layers, device=device)
        source = source[0][kept], source[1][kept]
    for whole, part in zip(target, source, strict=True):
        whole[at] = part.to(whole.dtype)
