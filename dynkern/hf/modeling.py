"""OPTForCausalLM: transformers' class with `generate(..., policy=…)` on dynkern's engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from dynkern.hf.loop import Call, decode
from dynkern.hf.packed import FREED, PackedEngine
from dynkern.hf.rows import RowBatch
from dynkern.hf.served import check_numbers, module_obstacle, setting_obstacle
from dynkern.policies import check_policy
from dynkern.policies import policy as make_policy
from dynkern.policies.planned import Full
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import Policy

# the call that transformers' preparation is about to hand to `_sample`; None: to its own loop
_CALL: ContextVar[Call | None] = ContextVar("call", default=None)


class OPTForCausalLM(transformers.OPTForCausalLM):
    """transformers.OPTForCausalLM whose `generate` runs under a dynkern policy.

    Everything else (from_pretrained, forward, training, saving) is transformers' own.
    """

    # of `generate` calls that name none; set by accelerate()
    _policy: str | Policy = "full"

    def __init__(self, config: transformers.OPTConfig) -> None:
        # ahead of transformers', which may ask for the device
        self._packed = PackedEngine()
        super().__init__(config)

    # code around it may be compiled: tracing would go through the bindings of the engine
    @torch.compiler.disable
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *,
        policy: str | Policy | None = None,
        kv_fill: str = "project",
        prefill: str = "full",
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Greedy decoding or sampling under `policy`; int64 [B, prompt + new], padded on the right.

        inputs or input_ids: int64 [B, T], or None for one row of BOS; attention_mask: [B, T],
        padding on either side, no holes. The prompt is echoed as given. policy, kv_fill, prefill:
        as in dynkern.LLM.run; None is "full", or what accelerate() was given. All else is
        transformers': every option that acts through its logits processors, its stopping criteria
        and its lengths, callers' own of both, streamers, output_scores, output_logits and
        return_dict_in_generate (whose cache stays None). Processors and criteria are called once
        a token, with padding on the left; a row that has ended has logits of zero.

        Sampling by temperature, top-k, top-p and repetition penalty alone is the engine's own: of
        the same distribution as transformers' but with other draws; anything beyond draws as
        transformers does. seed: of all draws, 0 to 2**64 - 1; None takes torch's default generator
        (so that transformers.set_seed decides), and 0 for a random policy without sampling.
        Rows are computed as in eval mode.

        What the engine does not serve (beams, assisted decoding, caches from outside,
        inputs_embeds, attentions, a model with hooks or replaced modules, …) runs in transformers'
        own loop under "full" and raises NotImplementedError under any other policy. Raises
        ValueError on bad input, RuntimeError for that loop after free_parameters=True.
        """
        chosen = make_policy(self._policy if policy is None else policy)
        check_policy(chosen, self.config.num_hidden_layers)
        options = RunOptions(prefill=prefill, kv_fill=kv_fill, seed=0 if seed is None else seed)
        named = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        kwargs.update({name: value for name, value in named.items() if value is not None})
        config, rest = self._merge(generation_config, kwargs)
        check_numbers(config)
        obstacle = setting_obstacle(config, rest)
        if obstacle is None and not self._packed.freed:
            obstacle = module_obstacle(self)
        if obstacle is not None:
            self._leave_to_transformers(obstacle, chosen)
            with _calling(None):
                return super().generate(inputs, generation_config, **kwargs)
        ids = self._given_ids(inputs, kwargs.pop("input_ids", None), config)
        rows = RowBatch(ids, kwargs.pop("attention_mask", None), _told_from_tokens(config))
        _check_lengths(config, rows, self.config.max_position_embeddings)
        call = Call(self._packed.engine(self), chosen, rows, options, seed)
        with _calling(call):
            return super().generate(
                rows.left_ids, generation_config, attention_mask=rows.left_mask, **kwargs
            )

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        # where transformers' `generate` goes, once prepared, for greedy decoding and sampling
        call = _CALL.get()
        if call is None:
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
        with _calling(None):
            return decode(
                call, input_ids, logits_processor, stopping_criteria, generation_config, streamer
            )

    def _merge(
        self, given: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """The effective configuration, and the arguments that are no part of one."""
        merged = self.generation_config.to_dict()
        if given is not None:
            merged.update({k: v for k, v in given.to_dict().items() if v is not None})
        config = GenerationConfig(**merged)
        return config, config.update(**kwargs)

    def _leave_to_transformers(self, obstacle: str, policy: Policy) -> None:
        """Raise where transformers' own loop may not, or cannot, run."""
        if not isinstance(policy, Full):
            raise NotImplementedError(
                f"generate: {obstacle} is not served under a policy; drop it, or use "
                "policy='full', which runs transformers' own loop"
            )
        if self._packed.freed:
            raise RuntimeError(f"generate: {obstacle} needs transformers' own loop; {FREED}")

    def _given_ids(
        self, inputs: Tensor | None, input_ids: Tensor | None, config: GenerationConfig
    ) -> Tensor | None:
        if inputs is not None and input_ids is not None:
            raise ValueError("input_ids: got both inputs and input_ids, expected one of them")
        ids = input_ids if inputs is None else inputs
        if ids is None and config.bos_token_id is not None:
            return torch.tensor([[config.bos_token_id]], device=self.device)
        return ids

    # -- after free_parameters ---------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._packed.engine(self).device if self._packed.freed else super().device

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own; RuntimeError after free_parameters=True, before a file is touched."""
        self._packed.check_held("save_pretrained")
        return super().save_pretrained(*args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own; RuntimeError after free_parameters=True."""
        self._packed.check_held("resize_token_embeddings")
        return super().resize_token_embeddings(*args, **kwargs)

    def train(self, mode: bool = True) -> OPTForCausalLM:
        """transformers' own; RuntimeError for mode=True after free_parameters=True."""
        if mode:
            self._packed.check_held("train")
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # behind to, half, cuda, …
        self._packed.check_held("to")
        return super()._apply(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # behind pickle and copy.deepcopy
        self._packed.check_held("copying")
        return super().__reduce_ex__(protocol)


@contextmanager
def _calling(call: Call | None) -> Iterator[None]:
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def _told_from_tokens(config: GenerationConfig) -> int | None:
    """The pad token where ids alone tell padding from tokens: it must be no EOS token."""
    eos = config.eos_token_id
    eos_ids = [] if eos is None else torch.as_tensor(eos).flatten().tolist()
    return None if config.pad_token_id in eos_ids else config.pad_token_id


def _check_lengths(config: GenerationConfig, rows: RowBatch, positions: int) -> None:
    """What no new token can follow; the engine checks the rest."""
    length = config.max_length
    if config.max_new_tokens is None and length is not None and length <= rows.width:
        raise ValueError(
            f"max_length: got {length} for a prompt of {rows.width} tokens, expected more; "
            "or use max_new_tokens"
        )
    for row, prompt in enumerate(rows.prompts):
        if len(prompt) > positions:
            raise ValueError(
                f"prompt of request {row}: too long, {len(prompt)} tokens and 1 new ones exceed "
                f"the model's {positions} positions"
            )
