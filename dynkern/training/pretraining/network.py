"""The network: a new OPT with sinusoidal positions, its growth in depth, its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from dynkern.training.data import IGNORED
from dynkern.training.pretraining.recipe import Recipe
from dynkern.training.pretraining.stream import Batch
from dynkern.training.shapes import shape_config

# what each residual branch writes
_WRITERS = ("self_attn.out_proj", "fc2")


def new_model(recipe: Recipe, layers: int) -> transformers.OPTForCausalLM:
    """A random model of `layers`, in train mode; positions begin as sines and cosines, so that
    neighbours are alike, and are learned like the rest. ValueError for a width that heads do not
    divide.
    """
    config = shape_config(f"{layers}x{recipe.hidden_size}", recipe.vocab_size, recipe.max_positions)
    config.layerdrop = 0.0
    model = transformers.OPTForCausalLM(config).train()
    table = model.model.decoder.embed_positions.weight
    offset = table.shape[0] - recipe.max_positions
    with torch.no_grad():
        table[offset:] = _sinusoids(recipe.max_positions, table.shape[1]) * config.init_std
    return model


def _sinusoids(positions: int, width: int) -> Tensor:
    """[positions, width] of unit variance."""
    rates = 10_000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * rates
    return 2**0.5 * torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def grow(model: transformers.OPTForCausalLM, layers: int) -> transformers.OPTForCausalLM:
    """A model of more layers that computes about the same.

    New layer i begins as old layer i // f, f times as many in all, with what it writes into the
    residual scaled by 1 / f: f short steps along the direction of a long one. ValueError unless
    `layers` is a multiple of the old ones.
    """
    old = model.config.num_hidden_layers
    if layers % old:
        raise ValueError(f"layers: got {layers}, expected a multiple of {old}")
    factor = layers // old
    config = type(model.config).from_dict({**model.config.to_dict(), "num_hidden_layers": layers})
    grown = type(model)(config).train(model.training)
    state = dict(model.state_dict())
    prefix = "model.decoder.layers."
    filled = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    for place in range(layers):
        source = f"{prefix}{place // factor}."
        for name, tensor in state.items():
            if name.startswith(source):
                rest = name.removeprefix(source)
                writes = rest.rpartition(".")[0] in _WRITERS
                filled[f"{prefix}{place}.{rest}"] = tensor / factor if writes else tensor
    grown.load_state_dict(filled)
    return grown.to(model.device)


def losses(
    model: transformers.OPTForCausalLM,
    batch: Batch,
    keep: Sequence[bool],
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cross entropies float32 [N] over response tokens and EOS, and whether each was the likeliest,
    bool [N]. keep: which layers run, for the whole batch. dtype: of the matrix products; sums,
    norms and softmax stay in float32.

    Written out rather than called: only labelled places reach the head, q, k and v are one product,
    attention is two, since torch's flash backward on a CPU took 40 % of a step at 20 to 60 tokens,
    and casts stand where they are needed, which took a quarter less than autocast.
    """
    decoder = model.model.decoder
    positions = decoder.embed_positions.weight[decoder.embed_positions.offset :]
    length = batch.ids.shape[1]
    h = decoder.embed_tokens(batch.ids) + positions[:length]
    wide = torch.promote_types(dtype, torch.float32)
    mask = torch.full((length, length), float("-inf"), dtype=wide, device=h.device).triu(1)
    here = batch.targets != IGNORED
    running = [layer for layer, runs in zip(decoder.layers, keep, strict=True) if runs]
    for layer in running:
        x = layer.self_attn_layer_norm(h).to(dtype)
        mixed = _attention(layer.self_attn, x, mask)
        if layer is running[-1]:
            # nothing attends to what stands behind it: some four places of five end here
            h, mixed = h[here], mixed[here]
        h = h + _linear(mixed, layer.self_attn.out_proj)
        x = layer.final_layer_norm(h).to(dtype)
        h = h + _linear(F.relu(_linear(x, layer.fc1)), layer.fc2)
    x = decoder.final_layer_norm(h if running else h[here]).to(dtype)
    logits = _wide(F.linear(x, model.lm_head.weight.to(dtype)))
    targets = batch.targets[here]
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets


def _linear(x: Tensor, *parts: torch.nn.Module) -> Tensor:
    """Of several modules at once, their outputs side by side."""
    if len(parts) == 1:
        weight, bias = parts[0].weight, parts[0].bias
    else:
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def answer_weights(targets: Tensor, power: float) -> Tensor:
    """What each labelled place weighs in the loss, float32 [N], in the order of `losses`: its
    answer's length to the power of -`power`.

    targets: int64 [B, T]. At 0 tokens weigh alike, at 1 answers do: an answer of one word is heard
    beside those of twelve.
    """
    here = targets != IGNORED
    lengths = here.sum(dim=1, keepdim=True).expand_as(targets)
    return lengths[here].to(torch.float32) ** -power


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _attention(attention: torch.nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """What the heads read, ahead of out_proj, like x."""
    rows, length, width = x.shape
    heads = width // attention.head_dim
    qkv = _linear(x, attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = qkv.view(rows, length, 3, heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    if x.is_cuda:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        q, k, v = (_wide(part).flatten(0, 1) for part in (q, k, v))
        # scale and mask within the product: a pass over the scores each less
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=attention.head_dim**-0.5)
        mixed = (scores.softmax(dim=-1) @ v).to(x.dtype).unflatten(0, (rows, heads))
    return mixed.transpose(1, 2).reshape(rows, length, width)
