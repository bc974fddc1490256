"""Shards: what the ranks of one launch fill beside the file that they are joined into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynkern.team import Team


def shard_path(whole: Path, team: Team) -> Path:
    """The file that this rank fills."""
    return whole.with_name(f"{whole.stem}.shard-{team.rank}-of-{team.size}{whole.suffix}")


def shard_paths(whole: Path) -> list[Path]:
    """Shards beside a file, in order, however many processes left them."""
    return sorted(whole.parent.glob(f"{whole.stem}.shard-*-of-*{whole.suffix}"))


def check_leftover(shards: Sequence[Path], resume: bool) -> None:
    """Raise a one-line ValueError where a stopped run left shards and nobody goes on with it."""
    if shards and not resume:
        raise ValueError(
            f"output: {shards[0]} is left of a stopped run; go on with --resume or take another "
            "--output"
        )
