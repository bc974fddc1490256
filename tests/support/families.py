"""Twins of every published OPT: fewer layers and heads, and widths in proportion."""

from __future__ import annotations

# layers, heads, head size; layers and heads divided by 4 up to 2.7b and by 8 beyond, heads
# narrowed by 4
_SHAPES = {
    "125m": (3, 3, 16),
    "1.3b": (6, 8, 16),
    "2.7b": (8, 8, 20),
    "6.7b": (4, 4, 32),
    "13b": (5, 5, 32),
    "30b": (6, 7, 32),
    "66b": (8, 9, 32),
}


def _sizes(layers: int, heads: int, head_size: int) -> dict:
    width = heads * head_size
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "ffn_dim": 4 * width,
        # wider layers sum more: logits of about the same size at every width
        "init_std": 2.0 * width**-0.5,
    }


_GALACTICA = {
    "enable_bias": False,
    "layer_norm_elementwise_affine": False,
    "activation_function": "gelu",
    "bos_token_id": 0,
    "vocab_size": 100,
}
# overrides of support.opt.tiny_config
FAMILIES: dict[str, dict] = {
    **{name: _sizes(*shape) for name, shape in _SHAPES.items()},
    "350m": {
        **_sizes(6, 4, 16),
        "word_embed_proj_dim": 32,
        "do_layer_norm_before": False,
        "_remove_final_layer_norm": True,
    },
    # the larger ones of OPT's instruction-tuned siblings
    "iml-1.3b": {**_sizes(6, 8, 16), "max_position_embeddings": 80, "vocab_size": 137},
    "iml-30b": {**_sizes(6, 7, 32), "max_position_embeddings": 80, "vocab_size": 137},
    "galactica-1.3b": {**_sizes(6, 8, 16), **_GALACTICA},
    "galactica-30b": {**_sizes(6, 7, 32), **_GALACTICA},
    "no bias": {"enable_bias": False},
    "no affine norm": {"layer_norm_elementwise_affine": False},
    "no final norm": {"_remove_final_layer_norm": True},
    "untied head": {"tie_word_embeddings": False},
    "untied head behind a projection": {"tie_word_embeddings": False, "word_embed_proj_dim": 24},
    "projected, norm first": {"word_embed_proj_dim": 32},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1},
}
