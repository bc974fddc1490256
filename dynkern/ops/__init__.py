"""The op table: one file an op, each with schema, contract and fake; backends.py dispatches."""

from dynkern.ops.backends import OPS, BackendUnavailable, use_backend
from dynkern.ops.embed import embed
from dynkern.ops.gate import gate
from dynkern.ops.kv_copy_forward import kv_copy_forward
from dynkern.ops.kv_project import kv_project
from dynkern.ops.lm_head_argmax import lm_head_argmax
from dynkern.ops.ragged_attention import ragged_attention_decode, ragged_attention_prefill
from dynkern.ops.ragged_linear import ragged_linear
from dynkern.ops.residual_bypass_layer_norm import residual_bypass_layer_norm
from dynkern.ops.residual_bypass_layer_norm_gate import residual_bypass_layer_norm_gate
from dynkern.ops.residual_bypass_linear import residual_bypass_linear
from dynkern.ops.route_compact import route_compact
from dynkern.ops.sample import sample

__all__ = [
    "OPS",
    "BackendUnavailable",
    "embed",
    "gate",
    "kv_copy_forward",
    "kv_project",
    "lm_head_argmax",
    "ragged_attention_decode",
    "ragged_attention_prefill",
    "ragged_linear",
    "residual_bypass_layer_norm",
    "residual_bypass_layer_norm_gate",
    "residual_bypass_linear",
    "route_compact",
    "sample",
    "use_backend",
]
