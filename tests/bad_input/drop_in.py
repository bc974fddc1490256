"""Rows of the table: the drop-in's `generate`, and single ops."""

from __future__ import annotations

import torch

from bad_input.cases import api
from dynkern import ops

NAN = float("nan")
IDS = torch.tensor([[2, 5, 6, 7], [2, 8, 9, 10]])
WHOLE = torch.ones_like(IDS)


def masked(*first: float):
    mask = WHOLE.float()
    mask[0] = torch.tensor(first)
    return lambda p: p.generate(attention_mask=mask)


IDS_GIVEN = [
    api("input_ids", "(4,)", lambda p: p.generate(IDS[0])),
    api("input_ids", "(1, 2, 4)", lambda p: p.generate(IDS[None])),
    api("input_ids", "(0, 4)", lambda p: p.generate(IDS[:0])),
    api("input_ids", "[[2, 5]]", lambda p: p.generate([[2, 5]])),
    api("input_ids", "dtype torch.float32", lambda p: p.generate(IDS.float()), "int64"),
    api("input_ids", "dtype torch.bool", lambda p: p.generate(IDS.bool()), "int64"),
    api("prompt of request 0", "token id 320", lambda p: p.generate(IDS + 318), "0 to 319"),
    api("prompt of request 1", "token id -1", lambda p: p.generate(torch.tensor([[5], [-1]]))),
    api("prompt of request 0", "too long", lambda p: p.generate(IDS[:, :1].expand(2, 170)), "160"),
]

MASKS = [
    api("attention_mask", "row 0 has a hole", masked(1, 0, 1, 1), "only at its ends"),
    api("attention_mask", "row 0 has no token", masked(0, 0, 0, 0), "at least one"),
    api("attention_mask", "2.0", masked(1, 1, 2, 1), "only 0 and 1"),
    api("attention_mask", "-1.0", masked(-1, 1, 1, 1), "only 0 and 1"),
    api("attention_mask", "0.5", masked(0.5, 1, 1, 1), "only 0 and 1"),
    api("attention_mask", "nan", masked(NAN, 1, 1, 1), "only 0 and 1"),
    api(
        "attention_mask",
        "shape (2, 3)",
        lambda p: p.generate(attention_mask=WHOLE[:, 1:]),
        "(2, 4)",
    ),
    api("attention_mask", "[[1, 1, 1, 1]]", lambda p: p.generate(attention_mask=[[1] * 4])),
    api(
        "attention_mask",
        "shape (1, 1, 2, 4)",
        lambda p: p.generate(attention_mask=WHOLE[None, None]),
        "(2, 4)",
    ),
]

OPTIONS = [
    api("uniform budget", "9", lambda p: p.generate(policy="uniform:9"), "1 to 6"),
    api("kv_fill", "'zero'", lambda p: p.generate(kv_fill="zero")),
    api("prefill", "'none'", lambda p: p.generate(prefill="none")),
    api("seed", "-1", lambda p: p.generate(seed=-1)),
    api("max_new_tokens", "2.5", lambda p: p.generate(max_new_tokens=2.5), "an integer"),
    api("max_length", "2", lambda p: p.generate(max_new_tokens=None, max_length=2), "more"),
    api(
        "prompt of request 0", "1000000 new ones", lambda p: p.generate(max_new_tokens=10**6), "160"
    ),
]

ROWS = torch.zeros(7, 60)
FEW = torch.zeros(2, dtype=torch.int32)


def sampled(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, penalty: float = 1.0):
    request = torch.zeros(7, dtype=torch.int64)
    options = (temperature, top_k, top_p, penalty)
    return lambda p: ops.sample(ROWS, None, request, request, 0, *options)


OPS = [
    api("keep", "dtype torch.float32", lambda p: ops.route_compact(ROWS), "torch.bool"),
    api("keep", "shape (7,)", lambda p: ops.route_compact(ROWS[:, 0] > 0)),
    api("weight", "dtype torch.float16", lambda p: ops.ragged_linear(ROWS, ROWS.half())),
    api("x", "shape (7, 60)", lambda p: ops.ragged_linear(ROWS, torch.zeros(3, 9))),
    api("bias", "shape (9,)", lambda p: ops.ragged_linear(ROWS, ROWS, torch.zeros(9))),
    api("n_active", "2 elements", lambda p: ops.ragged_linear(ROWS, ROWS, n_active=FEW)),
    api("weight", "vocabulary of 1", lambda p: ops.lm_head_argmax(ROWS, ROWS[:1])),
    api("temperature", "nan", sampled(temperature=NAN), "a finite number"),
    api("top_k", "-1", sampled(top_k=-1), "0 (off) or more"),
    api("top_p", "0", sampled(top_p=0.0), "above 0 and up to 1"),
    api("repetition_penalty", "0", sampled(penalty=0.0), "above 0"),
]

CASES = [*IDS_GIVEN, *MASKS, *OPTIONS, *OPS]
