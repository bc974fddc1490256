"""What is drawn: mostly near the border between good and bad."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

# anything that Python code may hand over by mistake
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 12),
    st.floats(),
    st.text(max_size=6),
    st.binary(max_size=4),
    st.lists(st.integers(-2, 400), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)

_NAMES = ["full", "uniform", "uniform-even", "random", "random-step", "early_exit", "stochastic"]
_NAMES.append("confidence")
_PIECES = [*_NAMES, *":,=+-._ \n", "force_first=1", "force_first=0", "top_prob=", "margin="]
_PIECES += ["cosine=", "exits=", "0.5", "1e-3", "nan", "٣", "é"]
SPECS = st.one_of(
    st.builds("{}:{}".format, st.sampled_from(_NAMES), st.integers(-1, 8)),
    st.builds("{}:{}".format, st.sampled_from(_NAMES), st.integers() | st.floats()),
    st.builds(
        "random{}:{},force_first={}".format,
        st.sampled_from(["", "-step"]),
        st.integers(0, 7),
        st.integers(-1, 2),
    ),
    st.builds(
        "confidence:{}={},exits={}".format,
        st.sampled_from(["top_prob", "margin", "cosine"]),
        st.floats(-1, 1),
        st.lists(st.integers(-1, 6), max_size=4).map(lambda layers: "+".join(map(str, layers))),
    ),
    st.lists(st.sampled_from(_PIECES) | st.integers().map(str), max_size=7).map("".join),
    st.text(max_size=20),
)

_WORDS = st.text(st.characters(codec=None), max_size=12)
_GOOD_RECORD = st.fixed_dictionaries(
    {"instruction": st.text(min_size=1, max_size=9), "input": _WORDS, "output": _WORDS},
    optional={
        "id": st.integers(0, 5) | st.text(max_size=3),
        "references": st.lists(_WORDS, max_size=2),
        "source": st.none() | _WORDS,
    },
)
RECORDS = st.one_of(
    _GOOD_RECORD,
    st.builds(
        lambda record, key, value: {**record, key: value},
        _GOOD_RECORD,
        st.sampled_from(["instruction", "input", "output", "id", "references", "source", "x"]),
        JSON,
    ),
    JSON,
)
DAMAGE = st.binary(max_size=4) | st.sampled_from(
    [b'"', b"\\", b"\n", b"{", b"}", b"[", b"]", b",", b"\xef\xbb\xbf", b"\\ud800", b"NaN", b"\r\n"]
    + [b'"instruction": ""', b"\xe2\x80\xa8", b"[" * 2000, b"9" * 5000]
)

_SIZES = ["vocab_size", "hidden_size", "num_hidden_layers", "ffn_dim", "max_position_embeddings"]
_SIZES += ["num_attention_heads", "word_embed_proj_dim"]
_SWITCHES = ["do_layer_norm_before", "_remove_final_layer_norm", "enable_bias"]
_SWITCHES += ["layer_norm_elementwise_affine", "tie_word_embeddings"]
_IDS = ["bos_token_id", "eos_token_id", "pad_token_id"]


def _entries(keys: list[str], values: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.dictionaries(st.sampled_from(keys), values, min_size=1, max_size=2)


CONFIG_CHANGES = st.one_of(
    _entries(_SIZES, st.sampled_from([1, 2, 3, 5, 6, 7, 16, 24, 47, 48, 92, 96, 131, 10**12])),
    _entries(_SWITCHES, st.booleans()),
    _entries(_IDS, st.integers(-1, 130)),
    _entries(["activation_function"], st.sampled_from(["relu", "gelu", "swish", "gelu_new"])),
    _entries([*_SIZES, *_SWITCHES, *_IDS, "activation_function", "model_type", "dtype"], JSON),
)

_ROUTE = st.lists(st.booleans(), min_size=6, max_size=6)
ROUTES = st.one_of(
    st.lists(_ROUTE, min_size=1, max_size=3),
    st.lists(_ROUTE.map(lambda route: torch.tensor(route)), min_size=1, max_size=3),
    st.lists(_ROUTE, min_size=1, max_size=3).map(torch.tensor),
    st.lists(st.lists(st.booleans() | st.integers(0, 1), max_size=7), max_size=3),
    st.lists(_ROUTE, min_size=1, max_size=3).map(lambda rows: torch.tensor(rows).float()),
    ODD,
    st.lists(ODD, max_size=3),
)

PROMPTS = st.lists(st.integers(0, 319), min_size=1, max_size=24)
_GOOD_POLICIES = st.sampled_from(
    ["full", "uniform:1", "uniform:3", "uniform:6", "uniform-even:2", "random:2", "early_exit:0"]
    + ["early_exit:4", "random:4,force_first=1", "random-step:3", "random-step:1,force_first=1"]
    + ["stochastic:0", "stochastic:0.6", "confidence:top_prob=0.3", "confidence:cosine=0.5"]
    + ["confidence:margin=0.1,exits=0+2"]
)
ROWS = st.tuples(PROMPTS, _GOOD_POLICIES, st.none())
GOOD_SAMPLING = st.tuples(
    st.sampled_from([0.0, 0.0, 1e-9, 0.3, 1.0, 2.5, 1e9]),
    st.sampled_from([0, 0, 1, 2, 40, 320, 10**9]),
    st.sampled_from([1.0, 1.0, 0.9, 0.3, 1e-9]),
    st.sampled_from([1.0, 1.0, 1.2, 0.7, 1e9, 1e-9]),
)
SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats() | st.floats(0, 2) | ODD,
        "top_k": st.integers() | st.integers(0, 400) | ODD,
        "top_p": st.floats() | st.floats(0, 1) | ODD,
        "repetition_penalty": st.floats() | st.floats(0.1, 3) | ODD,
    },
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "prompts": st.lists(ODD | PROMPTS | st.text(max_size=20), max_size=3) | ODD,
        "policy": ODD | SPECS | st.lists(SPECS, max_size=3),
        "max_new_tokens": ODD | st.integers(1, 5),
        "batch_size": ODD | st.integers(1, 5),
        "prefill": st.sampled_from(["full", "routed"]) | ODD,
        "kv_fill": st.sampled_from(["project", "copy", "deferred", "mask"]) | ODD,
        "seed": ODD | st.integers(0, 2**64 - 1),
        "force_length": st.booleans() | ODD,
        "sampling": st.none() | ODD,
        "request_ids": st.none() | ODD | st.lists(st.integers(0, 2**63 - 1), max_size=3),
        "on_token": st.none() | ODD,
    },
)
COUNTS = st.integers(-2, 70) | ODD.filter(lambda n: not isinstance(n, int) or abs(n) < 200)
