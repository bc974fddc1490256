"""The CPU engine's C ABI in ctypes: csrc/cpu/engine.h field by field, and its functions.

Pointers are plain addresses: whoever fills a struct keeps what they point to alive.
"""

from __future__ import annotations

import ctypes

_I64, _F64, _PTR = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p

# enums of engine.h
FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2}
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "float64": 3}
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2}
KV_FILLS = {"none": 0, "project": 1, "copy": 2, "deferred": 3, "mask": 4}
PROGRAMS = {"planned": 0, "bernoulli": 1, "subset": 2, "confidence": 3, "controller": 4}
GATE_INPUTS = {"hidden": 0, "position": 1, "token": 2}
MEASURES = {"top_prob": 0, "margin": 1, "cosine": 2}
PICK_GREEDY, PICK_SAMPLE, PICK_HIDDEN = 0, 1, 2

NO_MEMORY = -1

ISA_LEVELS = (
    *("auto", "portable", "avx2", "avx2_vnni"),
    *("avx512", "avx512_vnni", "avx512_bf16"),
)


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Matrix(ctypes.Structure):
    """A packed linear."""

    _fields_ = [*_fields(_PTR, "data scale bias"), *_fields(_I64, "n k")]


class Layer(ctypes.Structure):
    """One layer's norms and linears."""

    _fields_ = [
        *_fields(_PTR, "attn_norm_weight attn_norm_bias ffn_norm_weight ffn_norm_bias"),
        *_fields(Matrix, "qkv out fc1 fc2"),
    ]


class Model(ctypes.Structure):
    """A packed model."""

    _fields_ = [
        *_fields(_I64, "num_layers hidden num_heads head_size ffn vocab embed n_positions"),
        *_fields(_I64, "position_offset pre_norm final_norm activation format kv_dtype"),
        *_fields(_F64, "norm_eps attention_scale"),
        *_fields(_PTR, "position final_norm_weight final_norm_bias"),
        *_fields(Matrix, "token head project_in project_out"),
        ("layers", ctypes.POINTER(Layer)),
    ]


class Prefill(ctypes.Structure):
    """One pass over packed prompts."""

    _fields_ = [
        *_fields(_I64, "n_threads n_rows"),
        *_fields(_PTR, "ids bounds routes keys values hidden"),
    ]


class CopyKv(ctypes.Structure):
    """K/V of prompts to another place."""

    _fields_ = [
        *_fields(_I64, "n_threads n_layers n_tokens n_heads head_bytes"),
        *_fields(_PTR, "from_layer to_layer keys values"),
        *_fields(_I64, "from_layer_stride from_token_stride from_head_stride"),
        *_fields(_PTR, "to_keys to_values"),
        *_fields(_I64, "to_layer_stride to_token_stride to_head_stride"),
    ]


class Gate(ctypes.Structure):
    """A linear layer of a gate."""

    _fields_ = _fields(_PTR, "weight bias")


class Decode(ctypes.Structure):
    """Decode passes of one batch."""

    _fields_ = [
        *_fields(_I64, "n_threads n_slots max_passes advance"),
        ("max_seconds", _F64),
        *_fields(_PTR, "stop token position step request alive route remaining"),
        *_fields(_PTR, "eos_bounds eos_ids k v"),
        *_fields(_I64, "n_lanes capacity"),
        *_fields(_PTR, "lane length"),
        *_fields(_I64, "slot_stride kv_fill"),
        *_fields(_PTR, "waiting waiting_count"),
        *_fields(_I64, "waiting_tokens program"),
        ("probability", _PTR),
        *_fields(_I64, "budget force_first measure"),
        ("threshold", _F64),
        ("exits", _PTR),
        ("gates", _PTR),
        *_fields(_I64, "gate_depth gate_width gate_input gate_sampled"),
        ("pick", _I64),
        ("seed", ctypes.c_uint64),
        ("temperature", _F64),
        ("top_k", _I64),
        *_fields(_F64, "top_p repetition_penalty"),
        ("history", _PTR),
        ("history_stride", _I64),
        *_fields(_PTR, "out_token out_alive out_ran out_filled out_head_rows out_hidden"),
        ("out_seconds", _PTR),
    ]


def check_memory(result: int, doing: str) -> int:
    """What a function returned; MemoryError, one line, where it found no memory for `doing`."""
    if result == NO_MEMORY:
        raise MemoryError(f"{doing}: out of memory")
    return result


def bind_engine(library: ctypes.CDLL) -> None:
    """Declare the signatures of the engine's functions on a loaded csrc/cpu."""
    model, decode = ctypes.POINTER(Model), ctypes.POINTER(Decode)
    text, number = ctypes.c_char_p, ctypes.c_int
    signatures = {
        "packed_bytes": (_I64, _I64, _I64, _I64),
        # src, src_dtype, n, k, row_stride, format, dst, scale, n_threads
        "pack": (_I64, _PTR, _I64, _I64, _I64, _I64, _I64, _PTR, _PTR, _I64),
        # matrix, format, rows, n_rows, dst
        "unpack": (None, ctypes.POINTER(Matrix), _I64, _PTR, _I64, _PTR),
        "advise": (None, _PTR, _I64),
        "isa": (text,),
        "set_isa": (number, text),
        "prefill": (_I64, model, ctypes.POINTER(Prefill)),
        "copy_kv": (_I64, ctypes.POINTER(CopyKv)),
        "decode": (_I64, model, decode),
        "fixed": (_I64, model, decode),
        "fill": (_I64, model, decode),
        # hidden, rows, n_threads, logits, token, top, margin, log_sum
        "head": (_I64, model, _PTR, _I64, _I64, _PTR, _PTR, _PTR, _PTR, _PTR),
        # data, bytes, n_threads
        "fingerprint": (ctypes.c_uint64, _PTR, _I64, _I64),
        # data, floats, n_threads
        "read": (ctypes.c_float, _PTR, _I64, _I64),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, f"dynkern_cpu_{name}")
        function.restype, function.argtypes = result, arguments
