"""A bundle made on the fly: a tiny random OPT that reads the task suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynkern import assets
from dynkern.training.pretraining.tokenizer import train_task_tokenizer
from support.opt import save_opt

LAYERS = 8


def save_task_checkpoint(directory: Path) -> Path:
    """A random model with the suite's own kind of tokenizer, as pretraining leaves them."""
    save_opt(
        directory,
        num_hidden_layers=LAYERS,
        vocab_size=420,
        max_position_embeddings=192,
        init_std=0.1,
    )
    train_task_tokenizer(420, 60).save_pretrained(directory)
    return directory


def use_bundle(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let "default" stand for a bundle that lies elsewhere."""
    monkeypatch.setattr(assets, "BUNDLE_NAME", str(folder))
