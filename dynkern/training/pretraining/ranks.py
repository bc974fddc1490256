"""The processes of one launch (`torchrun`) that share out the batches of each step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType

import torch
from torch import Tensor

# the others wait while the first one evaluates
PATIENCE = timedelta(hours=2)


class Ranks:
    """rank, size: from RANK and WORLD_SIZE, alone without them; sums go over gloo.

    ValueError where the environment makes no sense or `shares`, the batches of a step, cannot be
    shared out evenly.
    """

    def __init__(self, shares: int) -> None:
        try:
            self.rank = int(os.environ.get("RANK", "0"))
            self.size = int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise ValueError(f"RANK, WORLD_SIZE: {error}, expected numbers") from None
        if not 0 <= self.rank < self.size:
            raise ValueError(f"RANK: got {self.rank}, expected 0 to {self.size - 1} (WORLD_SIZE)")
        if shares % self.size:
            raise ValueError(
                f"accumulation: got {shares}, expected a multiple of {self.size} processes"
            )

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This process's GPU, or the CPU where there is none."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        place = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        return torch.device("cuda", place)

    def __enter__(self) -> Ranks:
        if self.size > 1:
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.size > 1:
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Return once all have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def sum_up(self, parameters: Iterable[Tensor], numbers: Sequence[float]) -> list[float]:
        """Add the gradients of all processes into each, and hand back the sums of `numbers`."""
        if self.size == 1:
            return list(numbers)
        gradients = [p.grad for p in parameters if p.grad is not None]
        extra = torch.tensor(numbers, dtype=torch.float32, device=gradients[0].device)
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), extra]).cpu()
        torch.distributed.all_reduce(flat)
        parts = flat.split([*(gradient.numel() for gradient in gradients), len(numbers)])
        for gradient, part in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(part.view_as(gradient))
        return parts[-1].tolist()
