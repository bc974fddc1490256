"""Executors run one pass for a batch under its routes; the engine picks one by its backend."""

from __future__ import annotations

from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights
from dynkern.runtime.executors.eager import EagerExecutor

__all__ = ["EagerExecutor", "make_executor"]


def make_executor(spec: DecoderSpec, weights: DecoderWeights) -> EagerExecutor:
    """The executor for these weights: eager, which composes whatever kernels the ops resolve to."""
    return EagerExecutor(spec, weights)
