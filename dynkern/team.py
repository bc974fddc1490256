"""Processes of one launch (`torchrun`, `accelerate launch`): who does what, and who waits."""

from __future__ import annotations

import os
from datetime import timedelta
from types import TracebackType

import torch

# a rank may have much more to do than another
PATIENCE = timedelta(days=30)


class Team:
    """The processes that work on one output together; alone unless a launcher says otherwise.

    rank, size: from RANK and WORLD_SIZE. Ranks only wait for each other (gloo); what they make
    meets in files. ValueError where the environment makes no sense.
    """

    def __init__(self) -> None:
        self.rank, self.size = _number("RANK", 0), _number("WORLD_SIZE", 1)
        self.local_rank = _number("LOCAL_RANK", self.rank)
        if not 0 <= self.rank < self.size:
            raise ValueError(f"RANK: got {self.rank}, expected 0 to {self.size - 1} (WORLD_SIZE)")
        self._joined = False

    @property
    def leads(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    @property
    def device(self) -> str | None:
        """This rank's GPU; None leaves the choice to LLM."""
        if self.size == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def wait(self) -> None:
        """Return once every rank has come here. ValueError, one line, where one has ended."""
        if self.size == 1:
            return
        import torch.distributed as dist

        try:
            if not self._joined:
                dist.init_process_group("gloo", timeout=PATIENCE)
                self._joined = True
            dist.barrier()
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise ValueError(
                f"another process of this run has ended early ({reason}); start it again with "
                "--resume, with as many processes as you like"
            ) from None

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._joined:
            import torch.distributed as dist

            dist.destroy_process_group()
            self._joined = False


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}: got {text!r} in the environment, expected a number") from None
