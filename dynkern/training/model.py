"""transformers' OPTForCausalLM that trains under routes: static, dropped at random, gated, exits.

Parameters, names and files are transformers' own. What is added happens around a decoder layer:
`x <- layer(x) if it runs else x`. Prompt tokens run every layer, the tokens that follow are routed
(prefill="full"), which is how a routed model generates, with K/V by projection.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from dynkern import rng, routes
from dynkern.training.data import IGNORED
from dynkern.training.gates import Gates, gumbel_noise

# a counter's stream of its own, beside those of dynkern.rng
_STREAM_LAYERDROP = 8


@dataclass(frozen=True)
class Regime:
    """How layers run in training.

    route: bool per layer, or None for all; its skipped layers are frozen. prefill: "full" (prompt
    tokens run every layer) or "routed". layerdrop: probability that a layer is left out of a step,
    for every token. exit_loss: share of the loss that the exits' mean has, each exit being the
    final norm and LM head on the output of a layer of exit_layers (default: all but the last).
    """

    route: tuple[bool, ...] | None = None
    prefill: str = "full"
    layerdrop: float = 0.0
    exit_loss: float = 0.0
    exit_layers: tuple[int, ...] = ()
    seed: int = 0

    def check(self, num_layers: int) -> None:
        """Raise a one-line ValueError unless the regime fits a model of num_layers."""
        routes.check_choice("prefill", self.prefill, routes.PREFILLS)
        for name in ("layerdrop", "exit_loss"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 to below 1")
        for layer in self.exit_layers:
            if not 0 <= layer < num_layers - 1:
                raise ValueError(f"exit_layer: got {layer}, expected 0 to {num_layers - 2}")

    def exits(self, num_layers: int) -> tuple[int, ...]:
        """Layers after which an exit's loss is taken."""
        if not self.exit_loss:
            return ()
        return self.exit_layers or tuple(range(num_layers - 1))


# a decoder layer hands out a tuple in older transformers 5, a tensor in newer ones
_IN_A_TUPLE = inspect.signature(OPTDecoderLayer.forward).return_annotation is not Tensor


class _Layer(OPTDecoderLayer):
    """A decoder layer that asks its model how it runs.

    In `__call__`, outside of gradient checkpointing: gates and notes are computed once.
    """

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        body = super().__call__
        if self.visit is None:
            return body(hidden_states, *args, **kwargs)

        def run(x: Tensor) -> Tensor:
            out = body(x, *args, **kwargs)
            return out[0] if _IN_A_TUPLE else out

        result = self.visit(self.place, hidden_states, run)
        return (result,) if _IN_A_TUPLE else result


@dataclass
class Visit:
    """What the layers of one forward pass need, and leave.

    keep: bool [L, B, T], or None for all. gated: bool [B, T], tokens that gates decide on; noise:
    [L, B, T, 2] under which they do, or None for the arg-max.
    """

    keep: Tensor | None = None
    dropped: frozenset[int] = frozenset()
    gated: Tensor | None = None
    counted: Tensor | None = None
    gate_inputs: tuple[Tensor, ...] = ()
    noise: Tensor | None = None
    on_layer: Callable[[int, Tensor, Tensor], None] | None = None
    exits: dict[int, Tensor] | None = None
    bits: dict[int, Tensor] | None = None


class OPTForCausalLM(transformers.OPTForCausalLM):
    """transformers.OPTForCausalLM under a Regime and, where it has them, gates.

    `forward` returns the loss over labelled tokens only, and no logits: of 50,272 entries a token
    they would be the largest tensor by far, most of it for tokens that carry no loss.
    """

    _keys_to_ignore_on_load_missing = [r"gates\."]

    def __init__(self, config: transformers.OPTConfig) -> None:
        super().__init__(config)
        self.regime = Regime()
        self.gates: Gates | None = None
        self.alpha = 0.0
        # (optimizer step, micro-batch in it): counters of random draws
        self.clock = (0, 0)
        self.last: dict[str, Tensor] = {}
        for place, layer in enumerate(self.model.decoder.layers):
            layer.__class__ = _Layer
            layer.place, layer.visit = place, None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.model.decoder.layers)

    def train_under(self, regime: Regime) -> None:
        """Take a regime; layers that its route skips are frozen."""
        regime.check(self.num_layers)
        if regime.route is not None:
            routes.check_routes("route", [regime.route], 1, self.num_layers)
            for runs, layer in zip(regime.route, self.model.decoder.layers, strict=True):
                layer.requires_grad_(runs)
        self.regime = regime

    def add_gates(self, gates: Gates, alpha: float) -> None:
        """Let gates decide; alpha weighs the executed fraction in the loss."""
        if gates.num_layers != self.num_layers:
            raise ValueError(
                f"gates: made for {gates.num_layers} layers, expected {self.num_layers}"
            )
        self.gates, self.alpha = gates.to(self.device), alpha

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        prompt_length: Tensor,
        record: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_counted_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Loss of a batch of Collator. num_items_in_batch: labels of all micro-batches of a step;
        num_counted_in_batch: their counted_tokens, over which the cost of gates is a mean. record:
        needed where gates train.

        `last` holds what was measured for each row: "nll" [B], "tokens" [B], and with gates
        "ran" [L, B], routed tokens that ran each layer, of "routed" [B].
        """
        visit = self._plan(input_ids, labels, prompt_length, record)
        hidden = self.hidden_states(input_ids, visit)
        here = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][here]
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        losses = self._losses(hidden[:, :-1][here], targets)
        loss = losses.sum() / count
        if visit.exits:
            at_exits = [
                self._losses(self.final(h)[:, :-1][here], targets).sum() / count
                for h in visit.exits.values()
            ]
            weight = self.regime.exit_loss
            loss = (1 - weight) * loss + weight * torch.stack(at_exits).mean()
        if visit.bits is not None:
            ran = self._ran(visit)
            routed = visit.counted.sum(dim=1)
            total = routed.sum() if num_counted_in_batch is None else num_counted_in_batch
            loss = loss + self.alpha * (ran.sum() / total / len(ran))
            self.last |= {"ran": ran.detach(), "routed": routed}
        rows = here.nonzero()[:, 0]
        self.last["nll"] = losses.detach().new_zeros(len(here)).index_add_(0, rows, losses.detach())
        self.last["tokens"] = here.sum(dim=1)
        return CausalLMOutputWithPast(loss=loss)

    def hidden_states(self, input_ids: Tensor, visit: Visit) -> Tensor:
        """Final states [B, T, E] as the LM head reads them, under a visit."""
        layers = self.model.decoder.layers
        for layer in layers:
            layer.visit = lambda place, h, run: self._visit(visit, place, h, run)
        try:
            return self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        finally:
            for layer in layers:
                layer.visit = None

    def final(self, h: Tensor) -> Tensor:
        """Final norm and out-projection of residual states [..., D]."""
        decoder = self.model.decoder
        if decoder.final_layer_norm is not None:
            h = decoder.final_layer_norm(h)
        return h if decoder.project_out is None else decoder.project_out(h)

    def routed_tokens(self, input_ids: Tensor, prompt_length: Tensor) -> Tensor:
        """bool [B, T]: tokens behind the prompt, those that routed passes read."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return places >= prompt_length[:, None]

    def counted_tokens(self, labels: Tensor, prompt_length: Tensor) -> Tensor:
        """bool [B, T]: routed tokens that lead to a label; what follows is padding."""
        return self.routed_tokens(labels, prompt_length) & F.pad(labels[:, 1:] != IGNORED, (0, 1))

    def keep_of(self, route: Sequence[bool] | Tensor, routed: Tensor) -> Tensor:
        """bool [L, B, T]: what runs where tokens `routed` follow routes [L] or [L, B]."""
        table = torch.as_tensor(route, device=routed.device)
        table = table[:, None] if table.dim() == 1 else table
        return table[:, :, None] | ~routed

    def _plan(
        self, input_ids: Tensor, labels: Tensor, prompt_length: Tensor, record: Tensor | None
    ) -> Visit:
        regime, visit = self.regime, Visit()
        routed = self.routed_tokens(input_ids, prompt_length)
        if regime.route is not None:
            everywhere = regime.prefill == "routed"
            where = torch.ones_like(routed) if everywhere else routed
            visit.keep = self.keep_of(regime.route, where)
        if regime.layerdrop and self.training:
            step, micro = self.clock
            layers = torch.arange(self.num_layers)
            draw = rng.uniform(regime.seed, step, micro, layers, _STREAM_LAYERDROP)
            visit.dropped = frozenset((draw < regime.layerdrop).nonzero().flatten().tolist())
        if regime.exit_loss and self.training:
            visit.exits = {}
        if self.gates is not None:
            visit.gated, visit.bits = routed, {}
            visit.counted = self.counted_tokens(labels, prompt_length)
            visit.gate_inputs = self._gate_inputs(input_ids)
            if self.training:
                layers, tokens = (
                    torch.arange(count, device=input_ids.device)
                    for count in (self.num_layers, input_ids.shape[1])
                )
                visit.noise = gumbel_noise(
                    regime.seed, self.clock[0], record[:, None], tokens, layers[:, None, None]
                )
        return visit

    def _gate_inputs(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        decoder, kind = self.model.decoder, self.gates.input
        if kind == "token":
            return (decoder.embed_tokens(input_ids).detach(),)
        if kind == "position":
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            table = decoder.embed_positions.weight[places + decoder.embed_positions.offset]
            return (table.detach().expand(*input_ids.shape, -1),)
        return ()

    def _visit(
        self, visit: Visit, place: int, h: Tensor, run: Callable[[Tensor], Tensor]
    ) -> Tensor:
        keep = None if visit.keep is None else visit.keep[place]
        if place in visit.dropped or (keep is not None and not keep.any()):
            out = h
        else:
            out = run(h)
            if visit.on_layer is not None:
                visit.on_layer(place, h, out)
            if keep is not None and not keep.all():
                out = torch.where(keep[..., None], out, h)
            if visit.bits is not None and place in self.gates:
                out = self._gated(visit, place, h, out)
        if visit.exits is not None and place in self.regime.exits(self.num_layers):
            visit.exits[place] = out
        return out

    def _gated(self, visit: Visit, place: int, h: Tensor, out: Tensor) -> Tensor:
        source = visit.gate_inputs[0] if visit.gate_inputs else h.detach()
        bits = self.gates(place, source, None if visit.noise is None else visit.noise[place])
        visit.bits[place] = bits
        bits = torch.where(visit.gated, bits, torch.ones_like(bits))[..., None].to(h.dtype)
        return bits * out + (1 - bits) * h

    def _ran(self, visit: Visit) -> Tensor:
        """Counted tokens that ran each layer, [L, B]."""
        counted = visit.counted.to(torch.get_default_dtype())
        return torch.stack(
            [
                (counted * visit.bits[layer] if layer in visit.bits else counted).sum(dim=1)
                for layer in range(self.num_layers)
            ]
        )

    def _losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.lm_head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, reduction="none")
