"""The processes of one launch (`torchrun`) that share out the batches of each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dynkern.team import Team


class Ranks(Team):
    """A team whose members add up their gradients, over gloo.

    batches: of a step, in each phase. ValueError where the processes cannot share them out evenly.
    """

    def __init__(self, batches: Iterable[int]) -> None:
        super().__init__()
        for count in batches:
            if count % self.size:
                raise ValueError(
                    f"accumulation: got {count}, expected a multiple of {self.size} processes"
                )

    @property
    def place(self) -> torch.device:
        """What this process computes on."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def add_up(self, numbers: Tensor) -> None:
        """Put the sum over all processes in place of each one's. All must have `wait`ed once."""
        if self.size == 1:
            return
        ours = numbers.cpu()
        torch.distributed.all_reduce(ours)
        numbers.copy_(ours)

    def sum_up(self, parameters: Iterable[Tensor], numbers: Sequence[float]) -> list[float]:
        """Add the gradients of all processes into each, and hand back the sums of `numbers`. All
        must have `wait`ed once before.
        """
        if self.size == 1:
            return list(numbers)
        gradients = [p.grad for p in parameters if p.grad is not None]
        extra = torch.tensor(numbers, dtype=torch.float32, device=gradients[0].device)
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), extra])
        self.add_up(flat)
        parts = flat.split([*(gradient.numel() for gradient in gradients), len(numbers)])
        for gradient, part in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(part.view_as(gradient))
        return parts[-1].tolist()
