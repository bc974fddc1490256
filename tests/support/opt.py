"""Tiny random OPT models, made on the fly."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

VARIANTS: dict[str, dict] = {
    "pre_norm": {},
    "post_norm_projected": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
    "no_bias_no_affine_gelu": {
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "activation_function": "gelu",
    },
    "no_final_norm": {"_remove_final_layer_norm": True},
    "untied_head": {"tie_word_embeddings": False},
}


def tiny_config(**overrides) -> transformers.OPTConfig:
    """Six layers of width 48; odd sizes where they can be odd."""
    sizes = {
        "vocab_size": 131,
        "hidden_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "ffn_dim": 92,
        "max_position_embeddings": 96,
        "word_embed_proj_dim": 48,
        # the default of 0.02 gives a model that repeats one token whatever its layers do
        "init_std": 0.3,
    }
    return transformers.OPTConfig(**{**sizes, **overrides})


def tiny_opt(seed: int = 0, **overrides) -> transformers.OPTForCausalLM:
    """A random model in eval mode; biases and norm weights random too, so that none can hide."""
    torch.manual_seed(seed)
    model = transformers.OPTForCausalLM(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_opt(directory: Path, seed: int = 0, **overrides) -> transformers.OPTForCausalLM:
    """Save a tiny model (safetensors, no tokenizer) and hand it back."""
    model = tiny_opt(seed, **overrides)
    model.save_pretrained(directory)
    return model


def random_prompts(count: int, seed: int = 0, longest: int = 20, vocab_size: int = 131) -> list:
    """Prompts of different lengths that start with BOS (2) and hold no special token after it."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [
        [2, *torch.randint(4, vocab_size, (n - 1,), generator=generator).tolist()] for n in lengths
    ]
