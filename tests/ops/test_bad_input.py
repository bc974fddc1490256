"""Bad arguments: one line that names the argument, before any kernel has run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dynkern.ops import OPS
from dynkern.ops.backends import Kernel, forget_choices
from support.errors import one_line_error
from support.samples import Sample, samples

F, I32, I64 = torch.float32, torch.int32, torch.int64
# op, place of the argument, what is put there, and what the message must name
BAD = [
    ("embed", 0, torch.zeros(1, dtype=I32), "token_ids: got dtype"),
    ("embed", 1, torch.zeros(9, dtype=I64), "positions: got shape"),
    ("embed", 2, torch.zeros(50, 48), "project_in: got shape"),
    ("embed", 2, torch.zeros(50, 20).double(), "token_weight: got dtype"),
    ("embed", 3, torch.zeros(48), "position_weight: got shape"),
    ("embed", 4, torch.zeros(3, 3), "project_in: got shape"),
    ("embed", 4, torch.zeros(48, 20).half(), "project_in: got dtype"),
    ("embed", 4, None, "token_weight: got shape"),
    ("route_compact", 0, torch.zeros(2, 3), "keep: got dtype"),
    ("route_compact", 0, torch.zeros(2, dtype=torch.bool), "keep: got shape"),
    ("residual_bypass_layer_norm", 0, torch.zeros(7), "h: got shape"),
    ("residual_bypass_layer_norm", 1, torch.zeros(7, 9), "delta: got shape"),
    ("residual_bypass_layer_norm", 1, torch.zeros(7, 60).half(), "delta: got dtype"),
    ("residual_bypass_layer_norm", 1, None, "delta_rows: expected exactly when delta"),
    ("residual_bypass_layer_norm", 2, None, "delta_rows: expected exactly when delta"),
    ("residual_bypass_layer_norm", 2, torch.zeros(6, dtype=I32), "delta_rows: got shape"),
    ("residual_bypass_layer_norm", 2, torch.zeros(7, dtype=I64), "delta_rows: got dtype"),
    ("residual_bypass_layer_norm", 3, torch.zeros(2, dtype=I32), "n_delta: got 2 elements"),
    ("residual_bypass_layer_norm", 3, torch.zeros(1, dtype=I64), "n_delta: got dtype"),
    ("residual_bypass_layer_norm", 4, torch.zeros(9), "weight: got shape"),
    ("residual_bypass_layer_norm", 5, torch.zeros(9), "bias: got shape"),
    ("residual_bypass_layer_norm", 6, torch.zeros(7, dtype=I64), "row_index: got dtype"),
    ("residual_bypass_layer_norm", 7, torch.zeros(0, dtype=I32), "n_active: got 0 elements"),
    ("residual_bypass_layer_norm", 7, torch.zeros(()), "n_active: got dtype"),
    ("residual_bypass_layer_norm", 8, "middle", "norm: got 'middle'"),
    ("residual_bypass_layer_norm.gate", 0, torch.zeros(7), "h: got shape"),
    ("residual_bypass_layer_norm.gate", 8, "middle", "norm: got 'middle'"),
    ("residual_bypass_layer_norm.gate", 10, torch.zeros(3, 60), "gate_weight: got shape"),
    ("residual_bypass_layer_norm.gate", 10, torch.zeros(2, 60).half(), "gate_weight: got dtype"),
    ("residual_bypass_layer_norm.gate", 11, torch.zeros(3), "gate_bias: got shape"),
    ("residual_bypass_layer_norm.gate", 12, torch.zeros(2), "uniform: got shape"),
    ("residual_bypass_linear", 1, torch.zeros(7, 9), "delta: got shape"),
    ("residual_bypass_linear", 4, torch.zeros(9), "norm_weight: got shape"),
    ("residual_bypass_linear", 5, torch.zeros(9), "norm_bias: got shape"),
    ("residual_bypass_linear", 7, torch.zeros(2, dtype=I32), "n_active: got 2 elements"),
    ("residual_bypass_linear", 8, "middle", "norm: got 'middle'"),
    ("residual_bypass_linear", 10, torch.zeros(111, 9), "weight: got shape"),
    ("residual_bypass_linear", 10, torch.zeros(111, 60).half(), "weight: got dtype"),
    ("residual_bypass_linear", 11, torch.zeros(9), "bias: got shape"),
    ("residual_bypass_linear", 12, "swish", "activation: got 'swish'"),
    ("ragged_linear", 0, torch.zeros(7, 9), "x: got shape"),
    ("ragged_linear", 0, torch.zeros(7, 60, dtype=torch.float16), "weight: got dtype"),
    ("ragged_linear", 1, torch.zeros(60), "weight: got shape"),
    ("ragged_linear", 2, torch.zeros(9), "bias: got shape"),
    ("ragged_linear", 2, torch.zeros(111).double(), "bias: got dtype"),
    ("ragged_linear", 3, torch.zeros(7, 1, dtype=I32), "row_index: got shape"),
    ("ragged_linear", 4, torch.zeros(7, dtype=I32), "n_active: got 7 elements"),
    ("ragged_linear", 5, "swish", "activation: got 'swish'"),
    ("ragged_attention.prefill", 1, torch.zeros(1, 3, 9), "k: got shape"),
    ("ragged_attention.prefill", 0, torch.zeros(1, 60), "q: got shape"),
    ("ragged_attention.prefill", 2, torch.zeros(1, 3, 20).half(), "v: got dtype"),
    ("ragged_attention.prefill", 3, torch.zeros(2, dtype=I64), "cu_seqlens: got dtype"),
    ("ragged_attention.decode", 0, torch.zeros(7, 60), "q: got shape"),
    ("ragged_attention.decode", 0, torch.zeros(7, 3, 20).half(), "k: got dtype"),
    ("ragged_attention.decode", 2, torch.zeros(1, 1, 1), "v: got shape"),
    ("ragged_attention.decode", 3, torch.zeros(9, 3, 9, 21), "k_cache: got shape"),
    ("ragged_attention.decode", 3, torch.zeros(9, 3, 9, 20).half(), "k_cache: got dtype"),
    ("ragged_attention.decode", 4, torch.zeros(9, 3, 8, 20), "v_cache: got shape"),
    ("ragged_attention.decode", 4, torch.zeros(9, 3, 9, 20).double(), "v_cache: got dtype"),
    ("ragged_attention.decode", 5, torch.zeros(7, dtype=I64), "lane: got dtype"),
    ("ragged_attention.decode", 6, torch.zeros(3, dtype=I32), "length: got shape"),
    ("ragged_attention.decode", 7, torch.zeros(6, dtype=I32), "row_index: got shape"),
    ("ragged_attention.decode", 8, torch.zeros(3, dtype=I32), "n_active: got 3 elements"),
    ("kv_project", 0, torch.zeros(7, 59), "x: got shape"),
    ("kv_project", 1, torch.zeros(7, 60), "weight: got shape"),
    ("kv_project", 1, torch.zeros(120, 60).half(), "weight: got dtype"),
    ("kv_project", 2, torch.zeros(120).half(), "bias: got dtype"),
    ("kv_project", 3, torch.zeros(8, 3, 11, 20).half(), "k_cache: got dtype"),
    ("kv_project", 4, torch.zeros(8, 3, 11, 20).half(), "v_cache: got dtype"),
    ("kv_project", 5, torch.zeros(7, dtype=I64), "lane: got dtype"),
    ("kv_project", 6, torch.zeros(2, dtype=I32), "position: got shape"),
    ("kv_copy_forward", 1, torch.zeros(1, 1, 1, 1), "v_cache: got shape"),
    ("kv_copy_forward", 1, torch.zeros(42, 3, 7, 5).half(), "v_cache: got dtype"),
    ("kv_copy_forward", 2, torch.zeros(7, dtype=I32), "lane: got shape"),
    ("kv_copy_forward", 3, torch.zeros(1, 9, dtype=I32), "source: got shape"),
    ("kv_copy_forward", 4, torch.zeros(7, dtype=I64), "position: got dtype"),
    ("gate", 1, [], "weights: got 0"),
    ("gate", 1, [torch.zeros(3, 48), torch.zeros(3, 3)], "biases: got shape"),
    ("gate", 1, [torch.zeros(11, 48), torch.zeros(3, 11)], "biases: got shape"),
    ("gate", 1, [torch.zeros(11, 48)], "weights: got 1 with 2 biases"),
    ("gate", 1, [torch.zeros(11, 48).half(), torch.zeros(2, 11)], "weights: got dtype"),
    ("gate", 3, torch.zeros(2), "uniform: got shape"),
    ("lm_head_argmax", 0, torch.zeros(7, 9), "x: got shape"),
    ("lm_head_argmax", 0, torch.zeros(7, 48).half(), "weight: got dtype"),
    ("lm_head_argmax", 2, torch.zeros(2, dtype=I32), "n_active: got 2 elements"),
    ("lm_head_argmax", 1, torch.zeros(1, 48), "weight: got a vocabulary of 1"),
    ("sample", 0, torch.zeros(131), "logits: got shape"),
    ("sample", 1, torch.zeros(3, 3, dtype=I64), "history: got shape"),
    ("sample", 1, torch.zeros(7, 3, dtype=I32), "history: got dtype"),
    ("sample", 2, torch.zeros(7, dtype=I32), "request: got dtype"),
    ("sample", 3, torch.zeros(6, dtype=I64), "step: got shape"),
    ("sample", 5, -1.0, "temperature: got -1"),
    ("sample", 5, float("inf"), "temperature: got inf"),
    ("sample", 5, float("nan"), "temperature: got nan"),
    ("sample", 6, -1, "top_k: got -1"),
    ("sample", 7, 0.0, "top_p: got 0"),
    ("sample", 7, 2.3e-308, "top_p: got 2.3e-308"),
    ("sample", 7, float("nan"), "top_p: got nan"),
    ("sample", 7, 1.01, "top_p: got 1.01"),
    ("sample", 8, 0.0, "repetition_penalty: got 0"),
    ("sample", 8, float("nan"), "repetition_penalty: got nan"),
]


# float arguments that may be of another dtype than the rest: read, widened and never multiplied
ANY_FLOAT = {
    ("residual_bypass_layer_norm", "weight"),
    ("residual_bypass_layer_norm", "bias"),
    ("residual_bypass_layer_norm.gate", "weight"),
    ("residual_bypass_layer_norm.gate", "bias"),
    ("residual_bypass_layer_norm.gate", "uniform"),
    ("residual_bypass_linear", "norm_weight"),
    ("residual_bypass_linear", "norm_bias"),
    ("gate", "uniform"),
    ("sample", "logits"),
}


def of_seven_rows(label: str) -> Sample:
    """The first sample of seven rows, if the op has rows."""
    return next((s for s in samples(label) if "7" in s.name.split()[0]), samples(label)[0])


@pytest.fixture
def no_kernel(monkeypatch):
    """Every kernel of an op fails the test when it is called."""

    def called(*args):
        pytest.fail("a kernel ran on bad input")

    for op in OPS.values():
        for backend in op.kernels:
            monkeypatch.setitem(op.kernels, backend, Kernel(called))
    forget_choices()
    yield
    monkeypatch.undo()
    forget_choices()


@pytest.mark.parametrize(
    ("label", "place", "bad", "named"), BAD, ids=[f"{label}-{named}" for label, _, _, named in BAD]
)
def test_one_line_before_any_kernel(label, place, bad, named, no_kernel):
    args = of_seven_rows(label).to("cpu", F)
    args[place] = bad
    with one_line_error(ValueError, f"^{re.escape(named)}"):
        OPS[label].torch_op(*args)


def spoiled(label: str) -> Iterator[tuple[str, str, list[Any]]]:
    """(argument, what is wrong, arguments) with one tensor of a wrong rank or dtype."""
    sample = of_seven_rows(label)
    names = [argument.name for argument in OPS[label].torch_op._schema.arguments]
    for place, (name, value) in enumerate(zip(names, sample.args, strict=True)):
        tensor = value[0] if isinstance(value, list) else value
        if not isinstance(tensor, Tensor):
            continue
        wrong = {"dtype": tensor.to(torch.int16)}
        if tensor.numel() != 1 or tensor.dim() > 1:  # the counts are one element of any shape
            wrong |= {"rank 0": tensor.new_zeros(()), "one dimension more": tensor[None]}
        if (label, name) in ANY_FLOAT:
            del wrong["dtype"]
        for what, bad in wrong.items():
            args = sample.to("cpu", F)
            # the other floats are float32, the sample's own are float64
            bad = bad.float() if bad.is_floating_point() else bad
            args[place] = [bad, *args[place][1:]] if isinstance(value, list) else bad
            yield name, what, args


@pytest.mark.parametrize("label", OPS)
def test_a_wrong_rank_or_dtype_is_named_before_any_kernel(label, no_kernel):
    names = [argument.name for argument in OPS[label].torch_op._schema.arguments]
    spoiled_names = set()
    for name, what, args in spoiled(label):
        with pytest.raises(ValueError) as raised:
            OPS[label].torch_op(*args)
        message = str(raised.value)
        assert message.split(":")[0] in names and "\n" not in message, (name, what, message)
        if what != "dtype":  # of two dtypes that differ, either may be the one that is named
            assert message.startswith(f"{name}: got shape"), (name, what, message)
        spoiled_names.add(name)
    assert spoiled_names


@pytest.mark.parametrize("label", ["kv_project", "ragged_attention.decode"])
def test_caches_of_two_dtypes_leave_both_untouched(label):
    sample = of_seven_rows(label)
    args = sample.to("cpu", F)
    place = sample.mutated[1]
    args[place] = args[place].half()
    before = [args[i].clone() for i in sample.mutated]
    with one_line_error(ValueError, "^v_cache: got dtype torch.float16, expected torch.float32"):
        OPS[label].torch_op(*args)
    for i, cache in zip(sample.mutated, before, strict=True):
        assert torch.equal(args[i].nan_to_num(3.0), cache.nan_to_num(3.0))
