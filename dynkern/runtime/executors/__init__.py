"""Executors run passes for a batch under its routes; the engine picks one by its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dynkern.models.packed import PackedWeights
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights
from dynkern.runtime.batch import DecodeBatch, PassLimits, PassResult, PrefillResult
from dynkern.runtime.executors.eager import EagerExecutor
from dynkern.runtime.executors.native import NativeExecutor
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.sampling import Head, TokenPicker

__all__ = ["EagerExecutor", "Executor", "NativeExecutor", "make_executor"]


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

    def fixed_part(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> Tensor:
        """Embedding, final norm and LM head of the live rows, to be timed; tokens [B]."""
        ...

    def fill_part(self, batch: DecodeBatch, cache: KVCache) -> None:
        """K/V projections of the live rows at every layer, to be timed."""
        ...


def make_executor(spec: DecoderSpec, weights: DecoderWeights | PackedWeights) -> Executor:
    """Native for weights packed for csrc/cpu; else eager, which composes the ops' kernels."""
    if isinstance(weights, PackedWeights):
        return NativeExecutor(spec, weights)
    return EagerExecutor(spec, weights)
