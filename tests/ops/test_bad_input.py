"""Bad arguments: one line that names the argument, before any kernel has run."""

from __future__ import annotations

import pytest
import torch

from dynkern.ops import OPS
from support.samples import samples

F, I32, I64 = torch.float32, torch.int32, torch.int64
# op, place of the argument, what is put there, and what the message must name
BAD = [
    ("embed", 0, torch.zeros(1, dtype=I32), "token_ids: got dtype"),
    ("embed", 1, torch.zeros(9, dtype=I64), "positions: got shape"),
    ("embed", 4, torch.zeros(3, 3), "project_in: got shape"),
    ("route_compact", 0, torch.zeros(2, 3), "keep: got dtype"),
    ("route_compact", 0, torch.zeros(2, dtype=torch.bool), "keep: got shape"),
    ("residual_bypass_layer_norm", 1, torch.zeros(7, 9), "delta: got shape"),
    ("residual_bypass_layer_norm", 1, None, "delta_rows"),
    ("residual_bypass_layer_norm", 2, torch.zeros(7, dtype=I64), "row_index: got dtype"),
    ("residual_bypass_layer_norm", 3, torch.zeros(2, dtype=I32), "n_active: got 2 elements"),
    ("residual_bypass_layer_norm", 4, torch.zeros(9), "weight: got shape"),
    ("residual_bypass_layer_norm", 5, torch.zeros(9), "bias: got shape"),
    ("residual_bypass_layer_norm", 6, torch.zeros(7, dtype=I64), "row_index: got dtype"),
    ("residual_bypass_layer_norm", 8, "middle", "norm: got 'middle'"),
    ("ragged_linear", 0, torch.zeros(7, 9), "x: got shape"),
    ("ragged_linear", 0, torch.zeros(7, 60, dtype=torch.float16), "weight: got dtype"),
    ("ragged_linear", 2, torch.zeros(9), "bias: got shape"),
    ("ragged_linear", 3, torch.zeros(7, 1, dtype=I32), "row_index: got shape"),
    ("ragged_linear", 5, "swish", "activation: got 'swish'"),
    ("ragged_attention.prefill", 1, torch.zeros(1, 3, 9), "k: got shape"),
    ("ragged_attention.prefill", 3, torch.zeros(2, dtype=I64), "cu_seqlens: got dtype"),
    ("ragged_attention.decode", 2, torch.zeros(1, 1, 1), "v: got shape"),
    ("ragged_attention.decode", 3, torch.zeros(9, 3, 9, 21), "k_cache: got shape"),
    ("ragged_attention.decode", 4, torch.zeros(9, 3, 8, 20), "v_cache: got shape"),
    ("ragged_attention.decode", 5, torch.zeros(7, dtype=I64), "lane: got dtype"),
    ("ragged_attention.decode", 6, torch.zeros(3, dtype=I32), "length: got shape"),
    ("kv_project", 1, torch.zeros(7, 60), "weight: got shape"),
    ("kv_project", 5, torch.zeros(7, dtype=I64), "lane: got dtype"),
    ("kv_project", 6, torch.zeros(2, dtype=I32), "position: got shape"),
    ("kv_copy_forward", 1, torch.zeros(1, 1, 1, 1), "v_cache: got shape"),
    ("kv_copy_forward", 3, torch.zeros(1, 9, dtype=I32), "source: got shape"),
    ("kv_copy_forward", 4, torch.zeros(7, dtype=I64), "position: got dtype"),
    ("gate", 1, [], "weights: got 0"),
    ("gate", 1, [torch.zeros(3, 48), torch.zeros(3, 3)], "biases: got shape"),
    ("gate", 3, torch.zeros(2), "uniform: got shape"),
    ("lm_head_argmax", 0, torch.zeros(7, 9), "x: got shape"),
    ("lm_head_argmax", 1, torch.zeros(1, 48), "weight: got a vocabulary of 1"),
    ("sample", 1, torch.zeros(3, 3, dtype=I64), "history: got shape"),
    ("sample", 2, torch.zeros(7, dtype=I32), "request: got dtype"),
    ("sample", 5, -1.0, "temperature: got -1"),
    ("sample", 5, float("nan"), "temperature: got nan"),
    ("sample", 6, -1, "top_k: got -1"),
    ("sample", 7, 0.0, "top_p: got 0"),
    ("sample", 7, float("nan"), "top_p: got nan"),
    ("sample", 8, 0.0, "repetition_penalty: got 0"),
]


@pytest.mark.parametrize(("label", "place", "bad", "named"), BAD, ids=lambda v: str(v)[:40])
def test_one_line_before_any_kernel(label, place, bad, named):
    # the first sample of seven rows, if the op has rows
    chosen = next(
        (s for s in samples(label) if s.name.split()[0].find("7") >= 0), samples(label)[0]
    )
    args = chosen.to("cpu", F)
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    args[place] = bad
    with pytest.raises(ValueError) as raised:
        OPS[label].torch_op(*args)
    message = str(raised.value)
    assert named in message and len(message.splitlines()) == 1
    for mutated in chosen.mutated:
        if mutated != place:
            same = torch.equal(args[mutated].nan_to_num(3.0), before[mutated].nan_to_num(3.0))
            assert same
