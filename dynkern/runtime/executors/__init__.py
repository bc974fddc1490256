"""Executors run passes for a batch under its routes; the engine picks one by its weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dynkern.models.packed import PackedWeights
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights
from dynkern.routes import check_choice
from dynkern.runtime.batch import DecodeBatch, PassLimits, PassResult, PrefillResult
from dynkern.runtime.executors.cuda_graph import CudaGraphExecutor
from dynkern.runtime.executors.eager import EagerExecutor
from dynkern.runtime.executors.native import NativeExecutor
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.sampling import Head, TokenPicker

__all__ = ["CudaGraphExecutor", "EagerExecutor", "Executor", "NativeExecutor", "make_executor"]


class Executor(Protocol):
    """One model on one device. dtype: of the K/V cache; isa: what its kernels run on."""

    name: str
    spec: DecoderSpec
    device: torch.device
    dtype: torch.dtype
    head: Head

    @property
    def isa(self) -> str: ...

    def prefill(
        self, prompts: Sequence[Sequence[int]], routes: Tensor | None = None
    ) -> PrefillResult:
        """One pass over packed prompts; routes: bool [R, L] on the host, None for full depth."""
        ...

    def decode(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> PassResult:
        """One pass for the live rows: K/V appended, tokens picked, the batch left as it is."""
        ...

    def advance(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, limits: PassLimits
    ) -> list[PassResult]:
        """Passes within the limits, the same as one at a time; the batch is advanced, and the
        picker's history.

        Empty only where no row is live. A row that ends takes no part in later passes: either it
        is no longer alive in the batch, or its last pass is the last result.
        """
        ...

    def fixed_part(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, count: int = 1
    ) -> Tensor:
        """Embedding, final norm and LM head of the live rows, `count` times, to be timed; tokens
        [B].
        """
        ...

    def fill_part(self, batch: DecodeBatch, cache: KVCache) -> None:
        """K/V projections of the live rows at every layer, to be timed."""
        ...


def make_executor(
    spec: DecoderSpec, weights: DecoderWeights | PackedWeights, name: str | None = None
) -> Executor:
    """Native for weights packed for csrc/cpu; cuda_graph on a GPU; else eager, which composes the
    ops' kernels. name, or DYNKERN_EXECUTOR, picks one: "auto", "eager", "cuda_graph" or "native".

    Raises ValueError, one line, for one that these weights cannot have.
    """
    argument = "executor" if name is not None else "DYNKERN_EXECUTOR"
    name = name if name is not None else os.environ.get("DYNKERN_EXECUTOR") or "auto"
    check_choice(argument, name, ("auto", "eager", "cuda_graph", "native"))
    if isinstance(weights, PackedWeights):
        own = "native"
    else:
        own = "cuda_graph" if weights.device.type == "cuda" else "eager"
    able = {"native": ("native",), "cuda_graph": ("cuda_graph", "eager"), "eager": ("eager",)}[own]
    if name not in ("auto", *able):
        raise ValueError(
            f"{argument}: got {name!r}, expected auto or {' or '.join(able)} for these weights"
        )
    chosen = own if name == "auto" else name
    if chosen == "native":
        return NativeExecutor(spec, weights)
    if chosen == "cuda_graph":
        return CudaGraphExecutor(spec, weights, demanded=name == "cuda_graph")
    return EagerExecutor(spec, weights)
