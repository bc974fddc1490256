"""Scheduler: which requests decode together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dynkern.routes import TokenProgram
from dynkern.runtime.request import Request, SamplingParams, TokenPolicy


@dataclass(frozen=True)
class ScheduledBatch:
    """Requests that run as one batch. program: their token policy's, None for planned routes."""

    requests: list[Request]
    program: TokenProgram | None
    sampling: SamplingParams


class Scheduler:
    """First in, first out, in batches of at most batch_size.

    Planned rows mix freely, each with its own route. Rows of a token policy batch with rows of the
    same program; sampling parameters are one per batch.
    """

    def __init__(self, requests: Sequence[Request], batch_size: int, num_layers: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected 1 or more")
        self.batch_size = batch_size
        self._waiting = deque((r, _program(r, num_layers)) for r in requests)

    def next_batch(self) -> ScheduledBatch | None:
        """The next rows to decode together, or None when nothing waits."""
        if not self._waiting:
            return None
        first, program = self._waiting[0]
        batch = ScheduledBatch([], program, first.sampling)
        while self._waiting and len(batch.requests) < self.batch_size:
            request, wanted = self._waiting[0]
            if (wanted, request.sampling) != (program, first.sampling):
                break
            batch.requests.append(self._waiting.popleft()[0])
        return batch


def _program(request: Request, num_layers: int) -> TokenProgram | None:
    policy = request.policy
    return policy.lower(num_layers) if isinstance(policy, TokenPolicy) else None
