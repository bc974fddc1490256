"""Each reference against loops written from its contract, in float64; and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynkern import ops, rng
from dynkern.kernels.reference.gate import gate
from dynkern.kernels.reference.kv_project import kv_project
from dynkern.kernels.reference.ragged_attention import (
    ragged_attention_decode,
    ragged_attention_prefill,
)
from dynkern.kernels.reference.ragged_linear import ragged_linear
from dynkern.kernels.reference.residual_bypass_layer_norm import residual_bypass_layer_norm
from dynkern.ops import OPS
from support.samples import samples

D = torch.float64


def each(label: str, place: int = 0, other: float | None = None):
    """Every sample and what the reference makes of it; once more with `other` at `place`."""
    for value in (None, other) if other is not None else (None,):
        for sample in samples(label, seed=29):
            args, given = sample.to("cpu", D), sample.to("cpu", D)
            if value is not None:
                args[place] = given[place] = value
            result = OPS[label].kernels["reference"].function(*args)
            yield sample, given, args, result


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    y = torch.stack([(v - mean) / math.sqrt(variance + eps) for v in x])
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def test_embed():
    for _, (ids, positions, tokens, table, project, offset), _, result in each("embed", 5, 0):
        for j, (i, p) in enumerate(zip(ids.tolist(), positions.tolist(), strict=True)):
            token = tokens[i] if project is None else project @ tokens[i]
            assert close(result[j], token + table[p + offset])


def test_route_compact():
    for _, (keep,), _, (row_index, n_active) in each("route_compact"):
        for bits, rows, n in zip(keep.tolist(), row_index.tolist(), n_active.tolist(), strict=True):
            kept = [i for i, bit in enumerate(bits) if bit]
            assert n == len(kept) and rows[:n] == kept
            assert rows[n:] == [i for i, bit in enumerate(bits) if not bit]


def test_residual_bypass_layer_norm():
    for sample, given, args, y in each("residual_bypass_layer_norm", 9, 0.3):
        h, delta, delta_rows, n_delta, weight, bias, rows, n, norm, eps = given
        expected = h.clone()
        for j in range(int(n_delta) if delta is not None else 0):
            i = int(delta_rows[j])
            expected[i] = h[i] + delta[j]
            if norm == "post":
                expected[i] = layer_norm(expected[i], weight, bias, eps)
        assert close(args[0], expected), sample.name
        for j in range(int(n)):
            row = expected[int(rows[j])]
            normed = layer_norm(row, weight, bias, eps) if norm == "pre" else row
            assert close(y[j], normed), sample.name


def test_ragged_linear():
    act = {
        "none": lambda z: z,
        "relu": lambda z: z.clamp(min=0),
        "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
    }
    for sample, (x, weight, bias, rows, n, activation), _, y in each("ragged_linear"):
        for j in range(int(n)):
            row = x[j if rows is None else int(rows[j])]
            z = (weight * row).sum(dim=1) + (0 if bias is None else bias)
            assert close(y[j], act[activation](z)), sample.name


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One token, one head: q [Dh], keys and values [T, Dh]."""
    scores = [scale * float(q @ key) for key in keys]
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def test_ragged_attention_prefill():
    for sample, (q, k, v, ends, scale), _, y in each("ragged_attention.prefill", 4, 0.9):
        for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False):
            for t in range(start, end):
                heads = [
                    attend(q[t, h], k[start : t + 1, h], v[start : t + 1, h], scale)
                    for h in range(q.shape[1])
                ]
                assert close(y[t], torch.cat(heads)), sample.name


def test_ragged_attention_decode():
    for sample, given, args, y in each("ragged_attention.decode", 9, 0.9):
        q, k, v, k_cache, v_cache, lane, length, rows, n, scale = given
        for j in range(int(n)):
            i = int(rows[j])
            c, p = int(lane[i]), int(length[i])
            k_cache[c, :, p], v_cache[c, :, p] = k[j], v[j]
            heads = [
                attend(q[j, h], k_cache[c, h, : p + 1], v_cache[c, h, : p + 1], scale)
                for h in range(q.shape[1])
            ]
            assert close(y[j], torch.cat(heads)), sample.name
        assert torch.equal(args[3].nan_to_num(9.0), k_cache.nan_to_num(9.0))
        assert torch.equal(args[4].nan_to_num(9.0), v_cache.nan_to_num(9.0))


def test_prompts_without_tokens_have_no_rows():
    make = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(4, 2, 5, generator=make, dtype=D) for _ in range(3))
    packed = torch.tensor([0, 3, 4], dtype=torch.int32)
    holed = torch.tensor([0, 0, 3, 3, 4, 4], dtype=torch.int32)
    results = [ragged_attention_prefill(q, k, v, ends, 0.4) for ends in (packed, holed)]
    assert torch.equal(*results)


def test_kv_project():
    for sample, given, args, _ in each("kv_project"):
        x, weight, bias, k_cache, v_cache, lane, position, n = given
        heads, size = k_cache.shape[1], k_cache.shape[3]
        for j in range(int(n)):
            kv = weight @ x[j] + (0 if bias is None else bias)
            k, v = kv[: heads * size].view(heads, size), kv[heads * size :].view(heads, size)
            k_cache[lane[j], :, position[j]], v_cache[lane[j], :, position[j]] = k, v
        for got, expected in zip(args[3:5], (k_cache, v_cache), strict=True):
            assert close(got.nan_to_num(9.0), expected.nan_to_num(9.0)), sample.name


def test_kv_copy_forward():
    for sample, (k, v, lane, source, position), args, _ in each("kv_copy_forward"):
        expected = k.clone(), v.clone()
        for layer, row in ((source >= 0) & (lane >= 0)).nonzero().tolist():
            origin = int(lane[source[layer, row], row])
            if origin < 0:
                continue
            for cache, before in zip(expected, (k, v), strict=True):
                cache[lane[layer, row], :, position[row]] = before[origin, :, position[row]]
        assert torch.equal(args[0], expected[0]) and torch.equal(args[1], expected[1]), sample.name


def test_kv_copy_forward_needs_both_lanes():
    # three layers of two rows; lane -1: the row holds no K/V of that layer
    lane = torch.tensor([[-1, 3], [1, -1], [2, 4]], dtype=torch.int32)
    source = torch.tensor([[-1, -1], [0, 0], [0, 0]], dtype=torch.int32)
    position = torch.tensor([1, 0], dtype=torch.int32)
    k = torch.arange(5.0)[:, None, None, None] + torch.tensor([0.0, 0.25])[:, None]
    k, v = k.clone(), -k
    expected_k, expected_v = k.clone(), v.clone()
    # row 0 has no source lane; of row 1 only layer 2 has a lane of its own
    expected_k[4, :, 0], expected_v[4, :, 0] = k[3, :, 0], v[3, :, 0]
    ops.kv_copy_forward(k, v, lane, source, position)
    assert torch.equal(k, expected_k) and torch.equal(v, expected_v)


def test_gate():
    for sample, (h, weights, biases, uniform), _, (logits, keep) in each("gate"):
        for i, row in enumerate(h):
            x = row
            for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                x = weight @ (x if place == 0 else x.clamp(min=0)) + bias
            assert close(logits[i], x), sample.name
            run = 1 / (1 + math.exp(float(x[0] - x[1])))
            expected = x[1] > x[0] if uniform is None else float(uniform[i]) < run
            assert bool(keep[i]) == bool(expected), sample.name


def test_gate_with_equal_logits_skips():
    h = torch.randn(3, 4)
    _, keep = ops.gate(h, [torch.zeros(2, 4)], [torch.ones(2)])
    assert keep.tolist() == [False] * 3


def test_a_sampled_gate_runs_strictly_below_its_chance():
    # equal logits: the chance is one half, exactly
    uniform = torch.tensor([0.0, 0.49999, 0.5, 0.50001, 0.999])
    _, keep = ops.gate(torch.zeros(5, 4), [torch.zeros(2, 4)], [torch.ones(2)], uniform)
    assert keep.tolist() == [True, True, False, False, False]


def test_lm_head_argmax():
    for sample, (x, weight, n), _, (token, top, margin, log_sum) in each("lm_head_argmax"):
        for j in range(int(n)):
            z = [float(w @ x[j]) for w in weight]
            total = sum(math.exp(v) for v in z)
            first, second = sorted(z, reverse=True)[:2]
            assert int(token[j]) == z.index(first), sample.name
            assert math.isclose(float(top[j]), math.exp(first) / total, rel_tol=1e-9)
            gap = (math.exp(first) - math.exp(second)) / total
            assert math.isclose(float(margin[j]), gap, rel_tol=1e-7, abs_tol=1e-12)
            assert math.isclose(float(log_sum[j]), math.log(total), rel_tol=1e-9)


def test_arg_max_ties_go_to_the_lowest_id():
    weight = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    token, _, margin, _ = ops.lm_head_argmax(torch.tensor([[2.0, 1.0]]), weight)
    assert token.tolist() == [1] and margin.tolist() == [0.0]
    draw = ops.sample(torch.zeros(1, 9), None, torch.zeros(1).long(), torch.zeros(1).long(), 0, 0.0)
    assert draw.tolist() == [0]


def test_sample():
    for sample, given, _, token in each("sample"):
        logits, history, request, step, seed, temperature, top_k, top_p, penalty = given
        for b in range(logits.shape[0]):
            z = logits[b].tolist()
            for i in set(history[b].tolist()) - {-1} if history is not None else ():
                z[i] = z[i] / penalty if z[i] > 0 else z[i] * penalty
            if temperature == 0.0:
                assert int(token[b]) == z.index(max(z)), sample.name
                continue
            order = sorted(range(len(z)), key=lambda i: (-z[i], i))
            order = order[:top_k] if top_k else order
            total = sum(math.exp(z[i] / temperature) for i in order)
            kept, mass = [], 0.0
            for i in order:
                if mass < top_p:
                    kept.append(i)
                mass += math.exp(z[i] / temperature) / total
            draw = rng.vocabulary_uniforms(seed, request[b : b + 1], step[b : b + 1], len(z))[0]
            noisy = {i: z[i] / temperature - math.log(-math.log(float(draw[i]))) for i in kept}
            assert int(token[b]) == max(noisy, key=noisy.get), sample.name


def test_gradients():
    make = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=D).requires_grad_()

    rows, n = torch.tensor([2, 0, 3, 1], dtype=torch.int32), torch.tensor(3, dtype=torch.int32)
    check = torch.autograd.gradcheck
    assert check(
        lambda x, w, b: ragged_linear(x, w, b, rows, n, "gelu")[:3],
        (normal(4, 5), normal(3, 5), normal(3)),
    )
    for norm in ("pre", "post", "none"):

        def bypass(h, delta, w, b, norm=norm):
            h = h.clone()
            y = residual_bypass_layer_norm(h, delta, rows, n, w, b, rows, n, norm, 1e-5)
            return y[:3], h

        assert check(bypass, (normal(4, 6), normal(4, 6), normal(6), normal(6)))
    ends = torch.tensor([0, 3, 5], dtype=torch.int32)
    qkv = tuple(normal(5, 2, 4) for _ in range(3))
    assert check(lambda q, k, v: ragged_attention_prefill(q, k, v, ends, 0.5), qkv)
    caches = torch.randn(2, 4, 2, 6, 4, generator=make, dtype=D)
    lane, length = torch.arange(4, dtype=torch.int32), torch.tensor([0, 5, 2, 3], dtype=torch.int32)

    def step(q, k, v):
        held = [cache.clone() for cache in caches]
        return ragged_attention_decode(q, k, v, *held, lane, length, rows, n, 0.5)[:3]

    assert check(step, tuple(normal(4, 2, 4) for _ in range(3)))

    def fill(x, w, b):
        held = [cache.clone() for cache in caches]
        kv_project(x, w, b, *held, lane, length, n)
        return tuple(held)

    assert check(fill, (normal(4, 8), normal(16, 8), normal(16)))
    gate_args = (normal(4, 6), normal(5, 6), normal(5), normal(2, 5), normal(2))
    assert check(lambda h, a, b, c, d: gate(h, [a, c], [b, d], None)[0], gate_args)
    weights = normal(9, 3), normal(12, 3)
    ids = torch.tensor([1, 4, 4])
    embed = OPS["embed"].kernels["reference"].function
    assert check(lambda w, p: embed(ids, ids, w, p, None, 2), weights)
    weights = normal(9, 3), normal(12, 4), normal(4, 3)
    assert check(lambda w, p, project: embed(ids, ids, w, p, project, 2), weights)


def test_gradients_of_composed_ops_caches_and_the_head():
    make = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=D).requires_grad_()

    rows, n = torch.tensor([2, 0, 3, 1], dtype=torch.int32), torch.tensor(3, dtype=torch.int32)
    check = torch.autograd.gradcheck
    reference = {label: op.kernels["reference"].function for label, op in OPS.items()}
    for act in ("none", "relu"):
        assert check(
            lambda x, w, b, act=act: ragged_linear(x, w, b, rows, n, act)[:3],
            (normal(4, 5), normal(3, 5), normal(3)),
        )
    bypass_linear = reference["residual_bypass_linear"]
    bypass_gate = reference["residual_bypass_layer_norm.gate"]
    for norm in ("pre", "post", "none"):

        def linear(h, delta, g, b, w, c, norm=norm):
            out = bypass_linear(h, delta, rows, n, g, b, rows, n, norm, 1e-5, w, c, "gelu")
            return out[0], out[1][:3]

        vectors = normal(4, 6), normal(4, 6), normal(6), normal(6)
        assert check(linear, (*vectors, normal(5, 6), normal(5)))

        def gated(h, delta, g, b, w, c, norm=norm):
            held = h.clone()
            every = torch.arange(4, dtype=torch.int32)
            args = (held, delta, rows, n, g, b, every, None, norm, 1e-5, w, c, None)
            y, logits, keep = bypass_gate(*args)
            assert keep.dtype == torch.bool and not keep.requires_grad
            return y, logits, held

        assert check(gated, (*vectors, normal(2, 6), normal(2)))
    # arg-max is no function to differentiate; probability, margin and log sum are
    head = reference["lm_head_argmax"]
    assert check(lambda x, w: [t[:3] for t in head(x, w, n)[1:]], (normal(4, 5), normal(7, 5)))
    lane, length = torch.arange(4, dtype=torch.int32), torch.tensor([0, 5, 2, 3], dtype=torch.int32)

    def step(q, k, v, k_cache, v_cache):
        held = k_cache.clone(), v_cache.clone()
        return ragged_attention_decode(q, k, v, *held, lane, length, rows, n, 0.5)[:3], *held

    caches = normal(4, 2, 6, 4), normal(4, 2, 6, 4)
    assert check(step, (*(normal(4, 2, 4) for _ in range(3)), *caches))
    # two layers of two rows in four lanes: row 1 of layer 1 takes what layer 0 wrote
    lanes = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    source = torch.tensor([[-1, -1], [-1, 0]], dtype=torch.int32)
    copy = reference["kv_copy_forward"]

    def forward(k_cache, v_cache):
        held = k_cache.clone(), v_cache.clone()
        copy(*held, lanes, source, torch.tensor([3, 2], dtype=torch.int32))
        return held

    assert check(forward, caches)


@pytest.mark.parametrize("label", OPS)
def test_float64_in_is_float64_throughout(label):
    for _, _, _, result in each(label):
        outputs = result if isinstance(result, tuple) else (result,)
        floats = [t for t in outputs if isinstance(t, Tensor) and t.is_floating_point()]
        assert all(t.dtype == D for t in floats)
