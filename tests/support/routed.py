"""The drop-in under full depth and under a routed policy, beside transformers on the same layers.

The truth of a policy is transformers on a model that only has the policy's layers: under
prefill="routed" no other layer takes part.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from transformers import StoppingCriteria

from dynkern import routes
from support.opt import tiny_opt
from support.twins import twins

NEW_TOKENS = 8
BUDGET = 4
ROUTED = {"policy": f"uniform:{BUDGET}", "prefill": "routed"}


@cache
def models(variant: str):
    """transformers' model, ours, and the arguments under which they compute the same."""
    theirs, ours = twins(seed=1)
    if variant == "full":
        return theirs, ours, {}
    kept = routes.uniform(theirs.config.num_hidden_layers, BUDGET).nonzero().flatten().tolist()
    smaller = tiny_opt(seed=1)
    layers = smaller.model.decoder.layers
    smaller.model.decoder.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for index, layer in enumerate(smaller.model.decoder.layers):
        layer.self_attn.layer_idx = index
    smaller.config.num_hidden_layers = BUDGET
    return smaller, ours, ROUTED


def check(both, inputs: dict, make=None, **settings) -> Tensor:
    """Same ids from the same torch seed; make: settings made anew for each side."""
    theirs, ours, routed = both
    results = []
    for module, more in ((theirs, {}), (ours, routed)):
        torch.manual_seed(5)
        own = make() if make is not None else {}
        results.append(
            module.generate(**inputs, **{"max_new_tokens": NEW_TOKENS} | settings | own | more)
        )
    assert torch.equal(results[1], results[0])
    return results[1]


class EndsRows(StoppingCriteria):
    """Ends row r once it has 3 + r new tokens; counts its calls."""

    def __init__(self, width):
        self.width, self.calls, self.scores = width, 0, []

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        self.scores.append(None if scores is None else len(scores))
        return torch.arange(len(input_ids)) + 3 <= input_ids.shape[1] - self.width
