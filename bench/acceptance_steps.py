"""Steps of GPU acceptance that run whole decode passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from bench import acceptance_peers
from bench.acceptance_checks import calls_of_passes, check_calls, logits_errors, sanitize
from bench.acceptance_passes import (
    compare,
    decode_run,
    measure_passes,
    mixed_cases,
    planned_cases,
    random_prompts,
    seconds_per_pass,
    token_cases,
)

if TYPE_CHECKING:
    from bench.gpu_acceptance import Acceptance

# what compiling transformers' static-cache decode takes, about
COMPILE_SECONDS = 100.0


def decode_pass(acceptance: Acceptance) -> dict[str, Any]:
    """Full depth of one row and of eight: graphs against the same ops from Python."""
    tokens, repeats = acceptance.lengths()
    ways = {"graphs": acceptance.engines.graphs(), "eager": acceptance.engines.eager()}
    rows = []
    for batch in acceptance.within("decode_pass", (1, 2) if acceptance.dry_run else (1, 8)):
        timed = {
            name: seconds_per_pass(decode_run(engine, "full", batch, tokens))
            for name, engine in ways.items()
        }
        rows += compare("full depth", batch, timed, repeats, **acceptance.timing)
    return {"cases": acceptance.keep(rows)}


def planned_routes(acceptance: Acceptance) -> dict[str, Any]:
    """Nested routes at 3/4, 1/2 and 1/4 of the layers, beside their possible time."""
    batches = (1, 2) if acceptance.dry_run else (1, 8, 32)
    return _passes(acceptance, "planned_routes", batches, lambda layers, _: planned_cases(layers))


def mixed_routes(acceptance: Acceptance) -> dict[str, Any]:
    """Rows of one batch with different routes."""
    # the largest batch has a target of its own
    batches = (3, 6) if acceptance.dry_run else (512, 8, 32, 128)
    return _passes(acceptance, "mixed_routes", batches, mixed_cases)


def token_policies(acceptance: Acceptance) -> dict[str, Any]:
    """Policies that decide on the device in every pass."""
    batches = (2,) if acceptance.dry_run else (1, 8)
    cases = lambda layers, _: token_cases(layers)  # noqa: E731
    return _passes(acceptance, "token_policies", batches, cases, with_fill=True)


def _passes(
    acceptance: Acceptance,
    step: str,
    batches: Iterable[int],
    cases: Callable[..., Any],
    with_fill: bool = False,
) -> dict[str, Any]:
    if acceptance.peaks is None:
        raise RuntimeError("the step peak_rates did not pass, so no roofline can be drawn")
    engine = acceptance.engines.graphs()
    rows = []
    for batch in acceptance.within(step, batches):
        chosen = cases(engine.spec.num_layers, batch)
        given = batch, *acceptance.lengths(), acceptance.peaks, with_fill
        rows += acceptance.keep(measure_passes(engine, chosen, *given, **acceptance.timing))
    if not engine.executor.replays:
        raise RuntimeError("no pass was replayed")
    return {"cases": rows}


def host_syncs(acceptance: Acceptance) -> dict[str, Any]:
    """That a trace of more passes holds no more waits, and no launch from the host."""
    few, many = (2, 6) if acceptance.dry_run else (8, 40)
    engine, found = acceptance.engines.graphs(), {}
    specs = "full", "stochastic:0.5", "confidence:top_prob=0.5,exits=0+1"
    for spec in acceptance.within("host_syncs", specs):
        found[spec] = calls_of_passes(engine, spec, 2, few, many)
        if acceptance.device.type == "cuda":
            check_calls(found[spec], many - few)
    return found


def logits_error(acceptance: Acceptance) -> dict[str, Any]:
    """Logits against float64: at most twice the error of plain PyTorch in the same dtype."""
    errors = logits_errors(acceptance.engines.eager(), *((2, 3) if acceptance.dry_run else (4, 8)))
    if not acceptance.dry_run and not errors["ratio"] <= 2.0:
        raise AssertionError(f"errors of logits: {errors}")
    return errors


def graph_kinds(acceptance: Acceptance) -> dict[str, Any]:
    """Nested routes by a graph of the pass against a graph a layer."""
    tokens, repeats = acceptance.lengths()
    ways = {"whole pass": acceptance.engines.graphs()}
    ways["graph a layer"] = acceptance.engines.graphs(whole_passes=False)
    spec, rows = f"uniform:{acceptance.engines.spec.num_layers // 2}", []
    for batch in acceptance.within("graph_kinds", (1, 2) if acceptance.dry_run else (1, 32)):
        timed = {
            name: seconds_per_pass(decode_run(engine, spec, batch, tokens))
            for name, engine in ways.items()
        }
        rows += compare(spec, batch, timed, repeats, **acceptance.timing)
    return {"cases": acceptance.keep(rows)}


def batch_invariant(acceptance: Acceptance) -> dict[str, Any]:
    """What rows that do not depend on their batch cost, at full depth."""
    tokens, repeats = acceptance.lengths()
    ways = {"batch_invariant": acceptance.engines.graphs(batch_invariant=True)}
    ways["graphs"], rows = acceptance.engines.graphs(), []
    for batch in acceptance.within("batch_invariant", (1, 2) if acceptance.dry_run else (1, 8, 32)):
        timed = {
            name: seconds_per_pass(decode_run(engine, "full", batch, tokens))
            for name, engine in ways.items()
        }
        rows += compare("full depth, invariant or not", batch, timed, repeats, **acceptance.timing)
    return {"cases": acceptance.keep(rows)}


def peers(acceptance: Acceptance) -> dict[str, Any]:
    """transformers: its eager loop, and a static cache compiled, at full depth of one row."""
    why = acceptance_peers.missing()
    if why is not None:
        return {"absent": why}
    tokens, repeats = acceptance.lengths()
    engine = acceptance.engines.graphs()
    dtype = engine.weights.token_embedding.dtype
    peer = acceptance_peers.HuggingFace(engine.spec, acceptance.device, dtype)
    others = peer.ways(random_prompts(engine, 1), tokens - 1)
    if acceptance.left() < COMPILE_SECONDS and not acceptance.dry_run:
        acceptance.left_out.append("hf static: no time left to compile")
        del others["hf static"]
    rows = []
    for name, other in others.items():
        own = seconds_per_pass(decode_run(engine, "full", 1, tokens))
        rows += acceptance.keep(
            compare(
                f"full depth against {name}",
                1,
                {"graphs": own, name: other},
                repeats,
                **acceptance.timing,
            )
        )
    return {"cases": rows}


def sanitizer(acceptance: Acceptance) -> dict[str, Any]:
    """compute-sanitizer over the CUDA C++ kernels' tests."""
    if acceptance.dry_run:
        return {"absent": "a dry run has no CUDA kernel to run"}
    found = sanitize(acceptance.share("sanitizer"))
    if "left_out" in found:
        acceptance.left_out.append(found["left_out"])
    return found
