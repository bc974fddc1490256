"""OPT's adapter: config to DecoderSpec, Hugging Face tensor names to DecoderWeights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights

_REQUIRED = (
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "ffn_dim",
    "max_position_embeddings",
)
# where transformers' OPTConfig has a default, an old config.json may leave the key out
_DEFAULTS = {
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    """DecoderSpec of an OPT config.json; ValueError, one line, for anything else."""
    if config.get("model_type") != "opt":
        raise ValueError(
            f"model: config.json says model_type {config.get('model_type')!r}, expected 'opt'"
        )
    for key in _REQUIRED:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"model: config.json has {key} = {value!r}, expected an integer > 0")
    options = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    if options["activation_function"] not in ("relu", "gelu"):
        raise ValueError(
            f"model: config.json has activation_function = {options['activation_function']!r}, "
            "expected relu or gelu"
        )
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ValueError(
            f"model: config.json has hidden_size {config['hidden_size']}, expected a multiple of "
            f"num_attention_heads {config['num_attention_heads']}"
        )
    pre_norm = bool(options["do_layer_norm_before"])
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        ffn_size=config["ffn_dim"],
        max_positions=config["max_position_embeddings"],
        embed_size=config.get("word_embed_proj_dim") or config["hidden_size"],
        pre_norm=pre_norm,
        activation=options["activation_function"],
        bias=bool(options["enable_bias"]),
        norm_affine=bool(options["layer_norm_elementwise_affine"]),
        final_norm=pre_norm and not options["_remove_final_layer_norm"],
        tied_head=bool(options["tie_word_embeddings"]),
        bos_token_id=_token_id(options, "bos_token_id"),
        eos_token_id=_token_id(options, "eos_token_id"),
        pad_token_id=_token_id(options, "pad_token_id"),
    )


def _token_id(options: Mapping[str, Any], key: str) -> int:
    value = options[key]
    if isinstance(value, list) and value:
        value = value[0]
    return _DEFAULTS[key] if value is None else int(value)


class _Source:
    """Reads tensors by OPT's names, whatever prefix they carry, and checks their shapes."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device):
        self.tensors, self.dtype, self.device = tensors, dtype, device
        for prefix in ("model.decoder.", "decoder.", ""):
            if f"{prefix}embed_tokens.weight" in tensors:
                self.prefix = prefix
                return
        raise ValueError("model: the checkpoint has no decoder.embed_tokens.weight, expected OPT's")

    def read(self, name: str, *shape: int) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"model: the checkpoint has no tensor {name}")
        tensor = self.tensors[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"model: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        return tensor.detach()

    def get(self, name: str, *shape: int) -> Tensor:
        """The tensor itself, converted (a copy only where dtype or device differ)."""
        tensor = self.read(self.prefix + name, *shape)
        return tensor.to(self.device, self.dtype).contiguous()

    def stack(self, names: list[str], *shape: int) -> Tensor:
        """Tensors one below the other, each copied straight to its place."""
        rows = shape[0]
        packed = torch.empty(rows * len(names), *shape[1:], dtype=self.dtype, device=self.device)
        for i, name in enumerate(names):
            packed[i * rows : (i + 1) * rows].copy_(self.read(self.prefix + name, *shape))
        return packed


def pack_weights(
    tensors: Mapping[str, Tensor], spec: DecoderSpec, dtype: torch.dtype, device: torch.device
) -> DecoderWeights:
    """Weights under OPT's names (a Checkpoint or a state dict) packed for the runtime.

    Reads one tensor at a time; ValueError names a missing tensor or a wrong shape.
    """
    source = _Source(tensors, dtype, device)
    d, e, offset = spec.hidden_size, spec.embed_size, spec.position_offset
    embedding = source.get("embed_tokens.weight", spec.vocab_size, e)
    projected = e != d
    return DecoderWeights(
        token_embedding=embedding,
        position_embedding=source.get("embed_positions.weight", spec.max_positions + offset, d),
        project_in=source.get("project_in.weight", d, e) if projected else None,
        project_out=source.get("project_out.weight", e, d) if projected else None,
        layers=[_layer(source, spec, layer) for layer in range(spec.num_layers)],
        final_norm_weight=_affine(source, spec, "final_layer_norm.weight", spec.final_norm),
        final_norm_bias=_affine(source, spec, "final_layer_norm.bias", spec.final_norm),
        lm_head=embedding if spec.tied_head else _untied_head(source, spec),
    )


def _affine(source: _Source, spec: DecoderSpec, name: str, present: bool = True) -> Tensor | None:
    return source.get(name, spec.hidden_size) if present and spec.norm_affine else None


def _untied_head(source: _Source, spec: DecoderSpec) -> Tensor:
    head = source.read("lm_head.weight", spec.vocab_size, spec.embed_size)
    return head.to(source.device, source.dtype).contiguous()


def _layer(source: _Source, spec: DecoderSpec, layer: int) -> LayerWeights:
    at = f"layers.{layer}."
    d, f = spec.hidden_size, spec.ffn_size
    projections = [f"{at}self_attn.{which}_proj." for which in "qkv"]

    def bias(name: str, size: int) -> Tensor | None:
        return source.get(f"{at}{name}.bias", size) if spec.bias else None

    return LayerWeights(
        attn_norm_weight=_affine(source, spec, f"{at}self_attn_layer_norm.weight"),
        attn_norm_bias=_affine(source, spec, f"{at}self_attn_layer_norm.bias"),
        qkv_weight=source.stack([f"{p}weight" for p in projections], d, d),
        qkv_bias=source.stack([f"{p}bias" for p in projections], d) if spec.bias else None,
        out_weight=source.get(f"{at}self_attn.out_proj.weight", d, d),
        out_bias=bias("self_attn.out_proj", d),
        ffn_norm_weight=_affine(source, spec, f"{at}final_layer_norm.weight"),
        ffn_norm_bias=_affine(source, spec, f"{at}final_layer_norm.bias"),
        fc1_weight=source.get(f"{at}fc1.weight", f, d),
        fc1_bias=bias("fc1", f),
        fc2_weight=source.get(f"{at}fc2.weight", d, f),
        fc2_bias=bias("fc2", d),
    )
