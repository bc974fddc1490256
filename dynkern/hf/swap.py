"""accelerate: a model that transformers has loaded becomes the drop-in, in place."""

from __future__ import annotations

import transformers

from dynkern.hf.modeling import OPTForCausalLM
from dynkern.hf.packed import PackedEngine
from dynkern.hf.served import module_obstacle
from dynkern.policies import check_policy
from dynkern.policies import policy as make_policy
from dynkern.runtime.request import Policy


def accelerate(
    model: transformers.OPTForCausalLM,
    policy: str | Policy = "full",
    *,
    free_parameters: bool = False,
) -> OPTForCausalLM:
    """The same object, from here on a dynkern.OPTForCausalLM; `policy` is its default.

    free_parameters: keep the weights once, in the engine's layout, where they lie there and in
    the module otherwise. What needs the module's own (forward, training, saving, copying,
    transformers' own loop) then raises RuntimeError; `generate` no longer looks for changes.

    Raises ValueError, one line, for another class, a policy that does not fit, or a model with
    hooks, adapters or replaced modules, which the engine would not run.
    """
    if type(model) not in (transformers.OPTForCausalLM, OPTForCausalLM):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ValueError(f"model: got {kind}, expected a transformers.OPTForCausalLM")
    chosen = make_policy(policy)
    check_policy(chosen, model.config.num_hidden_layers)
    packed = getattr(model, "_packed", None) or PackedEngine()
    if not packed.freed and (obstacle := module_obstacle(model)) is not None:
        raise ValueError(f"model: {obstacle} is nothing that the engine runs")
    model.__class__ = OPTForCausalLM
    model._packed, model._policy = packed, chosen
    if free_parameters and not packed.freed:
        packed.free(model)
    return model
