"""Teacher-forced loss under routes: the model that decodes, with the answer put into its mouth."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from dynkern import routes
from dynkern.evaluation.teacher_forced import teacher_forced_losses, teacher_forced_sums
from dynkern.llm import LLM
from support.opt import tiny_opt

PROMPTS = [[2, 7, 9, 11], [2, 30, 4], [2, 7, 9, 11], [2, 7, 9, 11]]
TARGETS = [[8, 50, 6, 2], [5, 2], [8, 50, 6, 2], [13]]


@pytest.fixture(scope="module")
def module():
    return tiny_opt(0)


@pytest.fixture(scope="module", params=["auto", "reference"])
def llm(module, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    module.save_pretrained(folder)
    return LLM(folder, backend=request.param)


def _logits(module, ids, layers):
    kept = module.model.decoder.layers
    module.model.decoder.layers = kept[:layers]
    try:
        with torch.inference_mode():
            return module(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        module.model.decoder.layers = kept


def _expected(module, prompt, target, layers):
    """Token 1 from all layers; the others from the first `layers`, whose K/V of the prompt does
    not depend on the layers above.
    """
    first = _logits(module, prompt, 6)[-1:]
    rest = _logits(module, prompt + target[:-1], layers)[len(prompt) :]
    return float(cross_entropy(torch.cat([first, rest]), torch.tensor(target), reduction="sum"))


def test_sums_are_those_of_a_model_that_has_only_these_layers(module, llm):
    depths = [2, 3, 6, 1]
    keep = [routes.early_exit(6, depth - 1) for depth in depths]
    ours = teacher_forced_sums(llm, PROMPTS, TARGETS, keep)
    theirs = [
        _expected(module, prompt, target, depth)
        for prompt, target, depth in zip(PROMPTS, TARGETS, depths, strict=True)
    ]
    assert ours == pytest.approx(theirs, abs=2e-4)
    assert ours[0] != pytest.approx(ours[2], abs=1e-2)


def test_sums_add_up_the_losses_of_full_depth(llm):
    keep = [routes.full(6)] * 4
    sums = teacher_forced_sums(llm, PROMPTS, TARGETS, keep)
    for prompt, target, total in zip(PROMPTS, TARGETS, sums, strict=True):
        assert sum(teacher_forced_losses(llm, [prompt], [target])) == pytest.approx(total, abs=1e-4)


def test_bad_targets(llm):
    with pytest.raises(ValueError, match="targets: got 1 for 4 prompts"):
        teacher_forced_sums(llm, PROMPTS, TARGETS[:1], [routes.full(6)] * 4)
    with pytest.raises(ValueError, match="targets: got an empty one"):
        teacher_forced_sums(llm, [[2]], [[]], [routes.full(6)])
