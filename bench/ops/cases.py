"""Every op's cases, by the names of the op table."""

from __future__ import annotations

from collections.abc import Callable

from bench.ops import attention_cases, row_cases, weight_cases
from bench.ops.case import Case
from bench.ops.grid import Spec
from bench.ops.pool import Maker

MAKERS: dict[str, Callable[[Spec, Maker], Case]] = {
    "embed": row_cases.embed,
    "route_compact": row_cases.route_compact,
    "residual_bypass_layer_norm": row_cases.residual_bypass_layer_norm,
    "residual_bypass_layer_norm.gate": row_cases.residual_bypass_layer_norm_gate,
    "residual_bypass_linear": weight_cases.residual_bypass_linear,
    "ragged_linear": weight_cases.ragged_linear,
    "ragged_attention.prefill": attention_cases.ragged_attention_prefill,
    "ragged_attention.decode": attention_cases.ragged_attention_decode,
    "kv_project": weight_cases.kv_project,
    "kv_copy_forward": row_cases.kv_copy_forward,
    "gate": row_cases.gate,
    "lm_head_argmax": weight_cases.lm_head_argmax,
    "sample": row_cases.sample,
}


def make_case(spec: Spec, make: Maker) -> Case:
    """The case on fresh random inputs; TooLarge where memory does not hold it."""
    return MAKERS[spec.op](spec, make)
