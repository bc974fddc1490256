"""Content fingerprints of tensors: whether a tensor still holds what it held, at memory speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from dynkern.kernels import native

# words of the weight vector: 2 MB stay in a core's cache while the tensor streams by
_CHUNK = 1 << 18
_MASK = (1 << 64) - 1
_FOLD = 0x9E3779B97F4A7C15


@cache
def _weights() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (_CHUNK,), generator=generator)
    return words | 1


@cache
def _kernel() -> Callable[[int, int, int], int] | None:
    """csrc/cpu's own, which is faster, where it is there."""
    try:
        return getattr(native.cpu_library(), "dynkern_cpu_fingerprint", None)
    except native.LibraryUnavailable:
        return None


def fingerprint(tensor: Tensor) -> int:
    """64 bits over the bytes of a CPU tensor, in their order; shape and dtype do not enter.

    A sum of 8-byte words times odd random weights, modulo 2**64. A change of one word always shows,
    since odd weights have inverses. Changes of several words go unseen with a chance of 2**-64,
    unless somebody solves for them; a training step or an edit does not.
    """
    if (kernel := _kernel()) is not None:
        whole = tensor.detach().contiguous()
        return kernel(whole.data_ptr(), whole.nbytes, torch.get_num_threads())
    words, tail = _words(tensor.detach())
    total = 0
    for chunk in words.split(_CHUNK):
        total = total * _FOLD + int(torch.dot(chunk, _weights()[: chunk.numel()]))
    return (total * _FOLD + tail) & _MASK


def fingerprints(tensors: Sequence[Tensor]) -> list[int]:
    """`fingerprint` of each, on as many threads as torch uses (its dot product uses one)."""
    threads = torch.get_num_threads()
    if threads == 1 or len(tensors) < 2 or _kernel() is not None:
        return [fingerprint(tensor) for tensor in tensors]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(fingerprint, tensors))


def _words(tensor: Tensor) -> tuple[Tensor, int]:
    """The tensor's bytes as int64 words, and what is left over as a number."""
    flat = tensor.contiguous().view(-1)
    if flat.storage_offset() * flat.element_size() % 8 or flat.data_ptr() % 8:
        flat = flat.clone()  # a view must start at a whole word of its storage
    if flat.nbytes % 8 == 0:
        return flat.view(torch.int64), 0
    octets = flat.view(torch.uint8)
    whole = octets.numel() // 8 * 8
    return octets[:whole].view(torch.int64), int.from_bytes(octets[whole:].numpy(), "little")
