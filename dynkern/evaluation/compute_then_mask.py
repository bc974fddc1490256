"""Compute every layer, then mask: what a route means, with no cache, no kernel and no shortcut.

The routing of arXiv 2410.20022 restated over transformers' own modules: whole sequences at once,
every layer computed for every token, the result taken only where the token runs the layer. The
runtime is checked against it (tests, `dynkern doctor`); it saves no time and is not meant to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynkern.routes import KV_FILLS, check_choice


def masked_logits(
    model: nn.Module, token_ids: Tensor, keep: Tensor, kv_fill: str = "project"
) -> Tensor:
    """Logits [T, V] of one row whose token t runs layer l exactly where keep[t, l].

    model: a transformers OPTForCausalLM in any float dtype (float64 gives the truth). token_ids:
    int64 [T], no padding. keep: bool [T, L]. kv_fill: what later tokens find at skipped layers;
    "deferred" means the same as "project". Raises ValueError on shapes and an unknown kv_fill.
    """
    decoder = model.model.decoder
    check_choice("kv_fill", kv_fill, KV_FILLS)
    if keep.shape != (len(token_ids), len(decoder.layers)):
        raise ValueError(
            f"keep: got shape {tuple(keep.shape)}, expected "
            f"({len(token_ids)}, {len(decoder.layers)})"
        )
    h = decoder.embed_tokens(token_ids)
    if decoder.project_in is not None:
        h = decoder.project_in(h)
    positions = torch.arange(len(token_ids), device=token_ids.device) + 2
    h = h + decoder.embed_positions.weight[positions]
    copied = _CopiedKV(decoder, keep) if kv_fill == "copy" else None
    for index, layer in enumerate(decoder.layers):
        run = keep[:, index]
        x = _attention_input(layer, h)
        k, v = layer.self_attn.k_proj(x), layer.self_attn.v_proj(x)
        if copied is not None:
            k, v = copied.fill(index, h, k, v)
        visible = torch.ones(len(run), len(run), dtype=torch.bool, device=run.device).tril()
        if kv_fill == "mask":
            itself = torch.eye(len(run), dtype=torch.bool, device=run.device)
            visible = visible & (run[None, :] | itself)
        h = torch.where(run[:, None], _layer(layer, h, x, k, v, visible), h)
    if decoder.final_layer_norm is not None:
        h = decoder.final_layer_norm(h)
    if decoder.project_out is not None:
        h = decoder.project_out(h)
    return model.lm_head(h)


def _attention_input(layer: nn.Module, h: Tensor) -> Tensor:
    return layer.self_attn_layer_norm(h) if layer.do_layer_norm_before else h


def _layer(layer: nn.Module, h: Tensor, x: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    attention = layer.self_attn
    shape = (len(h), attention.num_heads, attention.head_dim)
    q, k, v = ((t.view(shape).transpose(0, 1)) for t in (attention.q_proj(x), k, v))
    scores = (q * attention.head_dim**-0.5) @ k.transpose(1, 2)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    h = h + attention.out_proj((weights @ v).transpose(0, 1).flatten(1))
    if not layer.do_layer_norm_before:
        h = layer.self_attn_layer_norm(h)
    y = layer.final_layer_norm(h) if layer.do_layer_norm_before else h
    h = h + layer.fc2(layer.activation_fn(layer.fc1(y)))
    return h if layer.do_layer_norm_before else layer.final_layer_norm(h)


class _CopiedKV:
    """K/V that a token takes over from its nearest executed layer below, or above to start with."""

    def __init__(self, decoder: nn.Module, keep: Tensor) -> None:
        self.decoder, self.keep = decoder, keep
        self.below: tuple[Tensor, Tensor] | None = None

    def fill(self, index: int, h: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        filled_k, filled_v = k.clone(), v.clone()
        for token in range(len(h)):
            if self.keep[token, index]:
                continue
            if self.keep[token, :index].any():
                filled_k[token], filled_v[token] = self.below[0][token], self.below[1][token]
            else:
                # nothing ran yet, so the first layer that will run sees this very hidden state
                first = self.decoder.layers[int(self.keep[token].nonzero()[0])]
                x = _attention_input(first, h[token])
                filled_k[token] = first.self_attn.k_proj(x)
                filled_v[token] = first.self_attn.v_proj(x)
        self.below = filled_k, filled_v
        return filled_k, filled_v
