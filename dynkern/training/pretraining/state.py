"""What a stopped run goes on from: one file, whole or not at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dynkern.files import write_whole
from dynkern.training.pretraining.stream import FAMILY_NUMBER

FILE_NAME = "state.pt"


@dataclass
class Progress:
    """How far a run is. phase: of the recipe. pool, batch: place in the phase's stream. grown_at:
    step at which the model got its layers. seconds: spent, evaluations included. log: entries as
    `write_curves` takes them; evaluations: what was found at each. entropy: the sum over labelled
    tokens since the last entry. families: int64 [2, len(FAMILY_NUMBER)], labelled tokens and right
    ones since then.
    """

    phase: int = 0
    step: int = 0
    tokens: int = 0
    pool: int = 0
    batch: int = 0
    grown_at: int = 0
    evaluated_at: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    entropy: float = 0.0
    families: torch.Tensor = field(
        default_factory=lambda: torch.zeros(2, len(FAMILY_NUMBER), dtype=torch.int64)
    )


def save_state(folder: Path, progress: Progress, model: Any, optimizers: Any) -> None:
    """Keep everything. OSError, one line, where the disk refuses."""
    content = {
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
    }
    write_whole(folder / FILE_NAME, lambda part: torch.save(content, part))


def load_state(folder: Path) -> tuple[Progress, dict[str, Any], dict[str, Any]] | None:
    """Progress, model and optimizers' states, or None where nothing was kept. ValueError, one line,
    for a file that is damaged or something else.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Progress(**content["progress"]), content["model"], content["optimizers"]
    except Exception as error:  # torch, pickle and zip raise a dozen types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ValueError(
            f"output: {path} is damaged or no state of a run ({reason}); take another --output"
        ) from None
