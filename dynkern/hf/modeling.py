"""OPTForCausalLM: transformers' class with `generate(..., policy=…)` on dynkern's engine."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig

from dynkern.hf.packed import PackedEngine
from dynkern.hf.rows import RowBatch
from dynkern.policies import check_policy
from dynkern.policies import policy as make_policy
from dynkern.policies.planned import Full
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import Policy, Request

# entries of a GenerationConfig that greedy decoding honours or that mean nothing to it
_SERVED = {
    "max_length",
    "max_new_tokens",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "use_cache",
    "transformers_version",
    "_from_model_config",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "length_penalty",
    "early_stopping",
    "renormalize_logits",
    "remove_invalid_values",
    "compile_config",
    "disable_compile",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
    "max_matching_ngram_size",
}
# values besides None and False that switch an entry off
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "guidance_scale": 1.0,
}
_DEFAULT_NEW_TOKENS = 20


class OPTForCausalLM(transformers.OPTForCausalLM):
    """transformers.OPTForCausalLM whose `generate` runs under a dynkern policy.

    Everything else (from_pretrained, forward, training, saving) is transformers' own.
    """

    def __init__(self, config: transformers.OPTConfig) -> None:
        super().__init__(config)
        self._packed = PackedEngine()

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        policy: str | Policy = "full",
        kv_fill: str = "project",
        prefill: str = "full",
        seed: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Greedy decoding under `policy`; ids int64 [B, prompt + new], padded on the right.

        inputs or input_ids: int64 [B, T]; attention_mask: [B, T], padding on either side, no
        holes. The prompt is echoed as given; rows end with their first generated EOS. policy,
        kv_fill, prefill, seed: as in dynkern.LLM.run. max_new_tokens, max_length, eos_token_id,
        pad_token_id and streamer (one row) are honoured.

        What greedy decoding on the engine does not serve (sampling, beams, logits processors, …)
        runs in transformers' own loop under "full" and raises NotImplementedError under any other
        policy. Raises ValueError on bad input.
        """
        chosen = make_policy(policy)
        check_policy(chosen, self.config.num_hidden_layers)
        options = RunOptions(max(1, _rows(inputs, kwargs)), prefill, kv_fill, seed)
        config, rest = self._merge(generation_config, kwargs)
        obstacle = _not_served(config, rest, options.batch_size)
        if obstacle is None:
            return self._run(inputs, config, rest, chosen, options)
        if isinstance(chosen, Full):
            return super().generate(inputs, generation_config, **kwargs)
        raise NotImplementedError(
            f"generate: {obstacle} is not served under a policy; drop it, or use policy='full', "
            "which runs transformers' own loop"
        )

    def _merge(
        self, given: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """The effective configuration, and the keyword arguments that belong to the model."""
        merged = self.generation_config.to_dict()
        if given is not None:
            merged.update({k: v for k, v in given.to_dict().items() if v is not None})
        config = GenerationConfig(**merged)
        return config, config.update(**kwargs)

    def _run(
        self,
        inputs: Tensor | None,
        config: GenerationConfig,
        rest: dict[str, Any],
        policy: Policy,
        options: RunOptions,
    ) -> Tensor:
        eos = config.eos_token_id
        eos_list = eos if isinstance(eos, list) else [] if eos is None else [eos]
        eos_ids, pad = frozenset(eos_list), config.pad_token_id
        if pad is None and eos_list:
            pad = eos_list[0]  # as in transformers
        ids = inputs if inputs is not None else rest.get("input_ids")
        rows = RowBatch(ids, rest.get("attention_mask"), None if pad in eos_ids else pad)
        new_tokens = _new_tokens(config, rows.width, self.config.max_position_embeddings)
        requests = [
            Request(row, prompt, policy, new_tokens, eos_ids)
            for row, prompt in enumerate(rows.prompts)
        ]
        streamer, on_token = rest.get("streamer"), None
        if streamer is not None:
            streamer.put(ids.cpu())

            def on_token(_: int, token: int) -> None:
                streamer.put(torch.tensor([token]))

        result = self._packed.engine(self).run(requests, options, on_token)
        if streamer is not None:
            streamer.end()
        # without pad and EOS token no row ends early, and none is padded
        return rows.append([c.token_ids for c in result.completions], 0 if pad is None else pad)


def _rows(inputs: Tensor | None, kwargs: dict[str, Any]) -> int:
    ids = inputs if inputs is not None else kwargs.get("input_ids")
    return ids.shape[0] if isinstance(ids, Tensor) and ids.dim() == 2 else 1


def _not_served(config: GenerationConfig, rest: dict[str, Any], rows: int) -> str | None:
    """The first setting that the engine's greedy decoding does not honour, as text."""
    for name, value in config.to_dict().items():
        off = value is None or value is False or value == _NEUTRAL.get(name, False)
        if name not in _SERVED and not off:
            return f"{name}={value!r}"
    for name, value in rest.items():
        if name not in ("input_ids", "attention_mask", "streamer") and value is not None:
            return name
    if rest.get("streamer") is not None and rows > 1:
        return f"streamer with {rows} rows"
    return None


def _new_tokens(config: GenerationConfig, prompt_width: int, max_positions: int) -> int:
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is None:
        # a length that nobody asked for must not fail a long prompt
        return max(1, min(_DEFAULT_NEW_TOKENS, max_positions - prompt_width))
    if config.max_length <= prompt_width:
        raise ValueError(
            f"max_length: got {config.max_length} for a prompt of {prompt_width} tokens, "
            "expected more; or use max_new_tokens"
        )
    return config.max_length - prompt_width
