"""The drop-in beside transformers' own class, with the same weights and the same inputs."""

from __future__ import annotations

import torch

import dynkern
from support.greedy import assert_same_greedy, new_tokens
from support.opt import tiny_opt

PAD, EOS = 1, 2


def twins(seed: int = 0, **overrides):
    """The same random weights in transformers' class and in dynkern's."""
    theirs = tiny_opt(seed, **overrides)
    ours = dynkern.OPTForCausalLM(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def padded(prompts: list[list[int]], side: str = "left"):
    """input_ids and attention_mask."""
    width = max(map(len, prompts))
    ids, mask = torch.full((len(prompts), width), PAD), torch.zeros(len(prompts), width).long()
    for row, prompt in enumerate(prompts):
        at = slice(width - len(prompt), width) if side == "left" else slice(len(prompt))
        ids[row, at], mask[row, at] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask}


def check_equal(theirs, ours, inputs: dict, eos=(EOS,), **kwargs) -> torch.Tensor:
    """Same ids, echo and padding; returns ours."""
    want = theirs.generate(**inputs, **kwargs)
    got = ours.generate(**inputs, **kwargs)
    ids = inputs["input_ids"]
    width = ids.shape[1]
    assert got.dtype == torch.int64 and got.device == ids.device
    assert torch.equal(got[:, :width], ids)
    mask = inputs.get("attention_mask", ids != PAD).bool()
    prompts = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    rows = new_tokens(got, width, eos), new_tokens(want, width, eos)
    assert_same_greedy(theirs, prompts, *rows)
    if rows[0] == rows[1]:
        assert torch.equal(got, want)
    return got
