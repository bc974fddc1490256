"""A part of a data set as a file of its own, for commands that take files whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dynkern.data import Record
from dynkern.files import write_whole


def write_part(path: Path, records: Sequence[Record]) -> Path:
    """Write records as .jsonl, whole or not at all; the path."""
    rows = [
        {name: value for name, value in asdict(record).items() if value is not None}
        for record in records
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path
