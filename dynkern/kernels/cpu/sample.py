"""sample on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import DTYPE_CODES, Sample, call, matrix


def sample(
    logits: Tensor,
    history: Tensor | None,
    request: Tensor,
    step: Tensor,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
) -> Tensor:
    rows, vocab_size = logits.shape
    token = request.new_empty(rows)
    arguments = Sample(
        *matrix(logits),
        *matrix(history),
        request.data_ptr(),
        step.data_ptr(),
        token.data_ptr(),
        rows,
        vocab_size,
        0 if history is None else history.shape[1],
        DTYPE_CODES[logits.dtype],
        seed,
        top_k,
        torch.get_num_threads(),
        temperature,
        top_p,
        repetition_penalty,
    )
    call("sample", arguments)
    return token


refuses = refusal(sample, floats="logits")
