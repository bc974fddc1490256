"""The bundled model: a small OPT trained on the task suite, shipped beside this file."""

from __future__ import annotations

from pathlib import Path

# the name by which models are asked for; "./default" is a folder of that name
DEFAULT_MODEL = "default"
BUNDLE_NAME = "opt-tasks-10m"
# parts of a bundle besides an OPT checkpoint's own files
PREDICTOR_FOLDER, SCORES_FILE, CARD_FILE = "predictor", "scores.json", "README.md"


def bundle_folder() -> Path:
    """Where the bundle is, or would be."""
    return Path(__file__).resolve().parent / BUNDLE_NAME


def bundle_path() -> Path:
    """The bundle's folder. FileNotFoundError, one line, where the package holds none."""
    folder = bundle_folder()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"model: this installation holds no {DEFAULT_MODEL!r} model ({folder} is absent), "
            "expected a checkpoint directory or a hub id"
        )
    return folder
