"""Reference of lm_head_argmax."""

from __future__ import annotations

from torch import Tensor

from dynkern.kernels.reference.rows import accumulator, count, linear, pad


def lm_head_argmax(
    x: Tensor, weight: Tensor, n_active: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    capacity = x.shape[0]
    logits = linear(x[: count(n_active, capacity)], weight)
    logits = logits.to(accumulator(logits))
    token = logits.argmax(dim=-1)
    log_sum = logits.logsumexp(dim=-1)
    first, second = (logits.topk(2, dim=-1).values - log_sum[:, None]).exp().unbind(dim=-1)
    outputs = (token, first.contiguous(), first - second, log_sum)
    return tuple(pad(t, capacity) for t in outputs)
