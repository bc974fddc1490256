"""What must be right before anything is timed: results of a case by the tests' tolerance table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.ops.case import Case, Set
from dynkern.ops import OPS, use_backend
from support.choices import SCORES, check_choice
from support.tolerances import assert_as_good

Result = tuple[list[Tensor], list[Tensor]]  # outputs, and what was written in place


class Parity:
    """One case's reference, in its own dtype and in a wider one, on one set at its fullest layer.

    The truth is in float64 for float32, and in float32 for halves: the table's floors are a
    thousand times what float32 errs by.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.layer = case, case.fullest()
        self.op = OPS[case.spec.op]
        self.dtype = getattr(torch, case.spec.dtype)
        self.plain = self._result(self._own("reference"), _same)
        if case.exact:
            self.truth, self.scores = self.plain, None
            return
        wide = torch.float64 if self.dtype == torch.float32 else torch.float32
        self.truth = self._result(self._own("reference"), lambda t: _widened(t, wide))
        self.scores = None
        if case.spec.op in SCORES:
            args = self._arguments(_copied(case.pool[0]), lambda t: _widened(t, wide))
            self.scores = SCORES[case.spec.op](*args).cpu()

    def fault(self, backend: str) -> str | None:
        """What is wrong with a backend's result, or with the library's, in a line; None if nothing
        is.
        """
        try:
            if backend != "library":
                self._compare(*self._result(self._own(backend), _same))
            elif self.case.library_agrees is None:
                self._compare(*self._result(self._library, _same))
            else:
                outputs, _ = self._result(self._library, _same)
                assert self.case.library_agrees(self.case.pool[0], *outputs), "not to be drawn"
        except (AssertionError, ValueError, RuntimeError) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            return words[:200]
        return None

    def _own(self, backend: str) -> Callable[[Set, list[Any]], Any]:
        def call(s: Set, args: list[Any]) -> Any:
            with use_backend(backend):
                return self.op.torch_op(*args)

        return call

    def _library(self, s: Set, args: list[Any]) -> Any:
        return self.case.library_outputs(self.case.library(s, self.layer))

    def _arguments(self, s: Set, convert: Callable[[Tensor], Tensor]) -> list[Any]:
        def each(value: Any) -> Any:
            if isinstance(value, list):
                return [each(item) for item in value]
            return convert(value) if isinstance(value, Tensor) else value

        return [each(value) for value in self.case.arguments(s, self.layer)]

    def _result(self, call: Callable[..., Any], convert: Callable[[Tensor], Tensor]) -> Result:
        case, s = self.case, _copied(self.case.pool[0])
        args = self._arguments(s, convert)
        with torch.inference_mode():
            found = call(s, args)
        outputs = [] if found is None else [found] if isinstance(found, Tensor) else list(found)
        limits = case.rows(self.layer) if case.rows else [None] * len(outputs)
        outputs = [out[:n] for out, n in zip(outputs, limits, strict=False)]
        if case.written:
            return outputs, case.written(args, self.layer)
        return outputs, [args[place] for place in case.mutated]

    def _compare(self, outputs: list[Tensor], written: list[Tensor]) -> None:
        plain, truth = self.plain, self.truth
        assert len(outputs) == len(plain[0]), f"{len(outputs)} outputs, not {len(plain[0])}"
        # a margin is a difference of probabilities, and no nearer to the truth than they are
        least = float(truth[0][1].max()) if self.case.spec.op == "lm_head_argmax" else 0.0
        pairs = zip(outputs + written, plain[0] + plain[1], truth[0] + truth[1], strict=True)
        for got, base, true in pairs:
            if self.case.exact:
                assert torch.equal(got, base), "not the reference's result"
            elif self.scores is not None and not got.is_floating_point():
                name = str(self.case.spec)
                check_choice(name, got.cpu(), base.cpu(), self.scores[: len(got)], self.dtype)
            else:
                assert_as_good(got, base, true, least)


def _copied(s: Set) -> Set:
    return tuple(tensor.clone() for tensor in s)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
