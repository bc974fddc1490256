"""What the engine serves of transformers' `generate`; all else is named as an obstacle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import GenerationConfig
from transformers.activations import ACT2FN

from dynkern.models.opt import source_parts, spec_from_config
from dynkern.models.spec import DecoderSpec

# entries of a GenerationConfig that act through transformers' own processors and criteria, that
# the loops honour, or that mean nothing to them
_SERVED = frozenset(
    """
    max_length max_new_tokens min_length min_new_tokens max_time stop_strings do_sample use_cache
    temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    renormalize_logits remove_invalid_values forced_bos_token_id forced_eos_token_id
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias
    watermarking_config num_return_sequences output_scores output_logits return_dict_in_generate
    pad_token_id bos_token_id eos_token_id decoder_start_token_id
    length_penalty early_stopping cache_config max_cache_len prefill_chunk_size compile_config
    disable_compile continuous_batching_config num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold assistant_lookbehind target_lookbehind max_matching_ngram_size
    assistant_ensemble_weight speculation_type transformers_version _from_model_config
    """.split()
)
# values besides None and False that switch an entry off
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "guidance_scale": 1.0,
    "cache_implementation": "dynamic",
}
_ARGUMENTS = frozenset(
    """
    input_ids attention_mask logits_processor stopping_criteria prefix_allowed_tokens_fn streamer
    tokenizer
    """.split()
)
# modules of these files compute what the engine computes
_KNOWN_FILES = ("torch.nn.modules.", "transformers.models.opt.", "transformers.activations")


def check_numbers(config: GenerationConfig) -> None:
    """ValueError for a NaN, which transformers' comparisons would let pass unnoticed."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and value != value:
            raise ValueError(f"{name}: got nan, expected a number")


def setting_obstacle(config: GenerationConfig, arguments: Mapping[str, Any]) -> str | None:
    """The first setting or argument of `generate` that the engine does not honour, as text."""
    for name, value in config.to_dict().items():
        off = value is None or value is False or value == _NEUTRAL.get(name, False)
        if name not in _SERVED and not off:
            return f"{name}={value!r}"
    for name, value in arguments.items():
        if name not in _ARGUMENTS and value is not None and value is not False:
            return name
    return None


def module_obstacle(model: nn.Module) -> str | None:
    """The first thing in a model that the engine, which reads parameters only, would not see."""
    try:
        spec = module_spec(model)
    except ValueError as error:
        return str(error).removeprefix("model: ")
    expected = {f"model.decoder.{p.name}" for p in source_parts(spec) if p.field != "lm_head"}
    names = set(model.state_dict(keep_vars=True)) - {"lm_head.weight"}
    if odd := sorted(names ^ expected):
        return f"a model {'with' if odd[0] in names else 'without'} {odd[0]}"
    return next(_changes(model, ACT2FN[spec.activation]), None)


def module_spec(model: nn.Module) -> DecoderSpec:
    """DecoderSpec of a transformers OPT as it stands; ValueError for one that has none."""
    config = model.config.to_dict()
    # by the modules: a head may be replaced, or tied, whatever the config says
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    return spec_from_config({**config, "tie_word_embeddings": tied})


def _changes(model: nn.Module, activation: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        where, kind = name or "the model", type(module)
        if module is not model and not kind.__module__.startswith(_KNOWN_FILES):
            yield f"{where}, a {kind.__module__}.{kind.__qualname__},"
        if hasattr(module, "activation_fn") and type(module.activation_fn) is not type(activation):
            yield f"{name}.activation_fn, a {type(module.activation_fn).__name__},"
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        # transformers' own only record what passes
        if any(not (hook.__module__ or "").startswith("transformers.") for hook in hooks):
            yield f"a forward hook on {where}"
        own = vars(module).get("forward")
        # torch.compile of a forward computes the same
        if own is not None and not hasattr(own, "_torchdynamo_orig_callable"):
            yield f"a replaced forward of {where}"
