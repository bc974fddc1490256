"""OPT's adapter: config to DecoderSpec, Hugging Face tensor names to packed weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from dynkern.arguments import check_flag, check_integer
from dynkern.models.checkpoint import Checkpoint
from dynkern.models.packed import PackedWeights
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights, SourcePart

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
    for key, default in _DEFAULTS.items():
        if isinstance(default, bool):
            check_flag(f"model: config.json's {key}", options[key])
    embed_size = config.get("word_embed_proj_dim")
    embed_size = config["hidden_size"] if embed_size is None else embed_size
    check_integer("model: config.json's word_embed_proj_dim", embed_size, 1)
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
        embed_size=embed_size,
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
    if isinstance(value, list) and value and key == "eos_token_id":
        value = value[0]
    if value is None:
        return _DEFAULTS[key]
    # -1 is no token's id, but old files say it for "none"
    return check_integer(f"model: config.json's {key}", value, -1)


def source_parts(spec: DecoderSpec) -> Iterator[SourcePart]:
    """Every tensor that OPT's checkpoints hold for `spec`; a tied head is none of its own."""
    d, e, vocab = spec.hidden_size, spec.embed_size, spec.vocab_size
    yield SourcePart(None, "token_embedding", "embed_tokens.weight", (vocab, e))
    positions = spec.max_positions + spec.position_offset
    yield SourcePart(None, "position_embedding", "embed_positions.weight", (positions, d))
    if e != d:
        yield SourcePart(None, "project_in", "project_in.weight", (d, e))
        yield SourcePart(None, "project_out", "project_out.weight", (e, d))
    for layer in range(spec.num_layers):
        yield from _layer_parts(spec, layer)
    if spec.final_norm:
        yield from _norm(spec, None, "final_norm", "final_layer_norm")
    if not spec.tied_head:
        yield SourcePart(None, "lm_head", "lm_head.weight", (vocab, e))


def _norm(spec: DecoderSpec, layer: int | None, field: str, name: str) -> Iterator[SourcePart]:
    if spec.norm_affine:
        for kind in ("weight", "bias"):
            yield SourcePart(layer, f"{field}_{kind}", f"{name}.{kind}", (spec.hidden_size,))


def _layer_parts(spec: DecoderSpec, layer: int) -> Iterator[SourcePart]:
    at, d, f = f"layers.{layer}.", spec.hidden_size, spec.ffn_size

    def linear(field: str, name: str, n: int, k: int, **place: int) -> Iterator[SourcePart]:
        yield SourcePart(layer, f"{field}_weight", f"{at}{name}.weight", (n, k), **place)
        if spec.bias:
            yield SourcePart(layer, f"{field}_bias", f"{at}{name}.bias", (n,), **place)

    yield from _norm(spec, layer, "attn_norm", f"{at}self_attn_layer_norm")
    for part, which in enumerate("qkv"):
        yield from linear("qkv", f"self_attn.{which}_proj", d, d, part=part, parts=3)
    yield from linear("out", "self_attn.out_proj", d, d)
    yield from _norm(spec, layer, "ffn_norm", f"{at}final_layer_norm")
    yield from linear("fc1", "fc1", f, d)
    yield from linear("fc2", "fc2", d, f)


def source_tensors(
    tensors: Mapping[str, Tensor], spec: DecoderSpec
) -> Iterator[tuple[SourcePart, Tensor]]:
    """Parts and their tensors under OPT's names, whatever prefix they carry, one at a time.

    tensors: a Checkpoint or a state dict. ValueError names a missing tensor or a wrong shape.
    """
    prefix = _prefix(tensors)
    for part in source_parts(spec):
        # the head is no part of the decoder
        name = part.name if part.field == "lm_head" else prefix + part.name
        if name not in tensors:
            raise ValueError(f"model: the checkpoint has no tensor {name}, expected by config.json")
        tensor = tensors[name].detach()
        if tuple(tensor.shape) != part.shape:
            raise ValueError(
                f"model: {name} has shape {tuple(tensor.shape)}, expected {part.shape}"
            )
        yield part, tensor
        del tensor  # ahead of reading the next


def _check_parts(tensors: Mapping[str, Tensor], spec: DecoderSpec) -> None:
    """As source_tensors, but from a checkpoint's headers: ahead of making room for the weights,
    which a wrong config.json may want by the terabyte.
    """
    if not isinstance(tensors, Checkpoint):
        return
    prefix = _prefix(tensors)
    for part in source_parts(spec):
        name = part.name if part.field == "lm_head" else prefix + part.name
        if name not in tensors:
            raise ValueError(f"model: the checkpoint has no tensor {name}, expected by config.json")
        if (shape := tensors.shape(name)) != part.shape:
            raise ValueError(f"model: {name} has shape {shape}, expected {part.shape}")


def _check_values(tensors: Mapping[str, Tensor], part: SourcePart, tensor: Tensor) -> None:
    """ValueError for whole numbers, NaN or infinity as weights of a file: arg-max over NaN gives
    tokens all the same.

    A sum is one pass at the speed of memory; where it is not finite, every value is looked at.
    """
    if not isinstance(tensors, Checkpoint):
        return
    if not tensor.is_floating_point():
        raise ValueError(f"model: {part.name} has dtype {tensor.dtype}, expected a float's")
    if tensor.sum(dtype=torch.float32).isfinite():
        return
    if not tensor.isfinite().all():
        raise ValueError(
            f"model: {part.name} holds values that are not finite, expected finite weights"
        )


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    for prefix in ("model.decoder.", "decoder.", ""):
        if f"{prefix}embed_tokens.weight" in tensors:
            return prefix
    raise ValueError("model: the checkpoint has no decoder.embed_tokens.weight, expected OPT's")


def pack_weights(
    tensors: Mapping[str, Tensor], spec: DecoderSpec, dtype: torch.dtype, device: torch.device
) -> DecoderWeights:
    """Weights under OPT's names packed for the ops, shared where dtype and device agree.

    Reads one tensor at a time; raises ValueError as source_tensors does.
    """
    made: dict[int | None, dict[str, Tensor]] = {}
    _check_parts(tensors, spec)
    for part, tensor in source_tensors(tensors, spec):
        _check_values(tensors, part, tensor)
        owner = made.setdefault(part.layer, {})
        if part.parts == 1:
            owner[part.field] = tensor.to(device, dtype).contiguous()
            continue
        # stacked: each is copied straight to its place
        rows, *rest = part.shape
        if part.field not in owner:
            shape = (rows * part.parts, *rest)
            owner[part.field] = torch.empty(shape, dtype=dtype, device=device)
        owner[part.field][part.part * rows : (part.part + 1) * rows].copy_(tensor)
    top = made[None]
    if spec.tied_head:
        top["lm_head"] = top["token_embedding"]
    layers = [_filled(LayerWeights, made[layer]) for layer in range(spec.num_layers)]
    return _filled(DecoderWeights, {**top, "layers": layers})


def _filled(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass of `values`, None where there is none."""
    return kind(**{field.name: values.get(field.name) for field in fields(kind)})


def pack_for_cpu(
    tensors: Mapping[str, Tensor], spec: DecoderSpec, format: str = "float32"
) -> PackedWeights:
    """Weights under OPT's names packed for the CPU engine, each converted as it is read.

    tensors: on the CPU, in any float dtype. Reads one at a time and holds no second copy. Raises
    ValueError as source_tensors does or on an unknown format, LibraryUnavailable without csrc/cpu.
    """
    _check_parts(tensors, spec)
    packed = PackedWeights(spec, format)
    for part, tensor in source_tensors(tensors, spec):
        _check_values(tensors, part, tensor)
        packed.write(part, tensor)
        del tensor  # ahead of reading the next
    return packed
