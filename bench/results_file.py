"""Append-only CSV of measurements, each row stamped with what it was measured on."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynkern.files import append_whole
from dynkern.kernels import native
from dynkern.machine import device_name

if TYPE_CHECKING:
    import torch

# devices of rows from before instruction sets were named
EARLIER = {"AMD EPYC": "AMD EPYC, avx512_bf16"}
# a bundled model, and since when its weights are those that are shipped
RENEWED = ("opt-tasks-10m", "2026-11-30T07:00")
STAMP = ("time", "commit", "device", "torch", "threads", "dry_run")


def stamp(device: torch.device | str, dry_run: bool) -> dict[str, Any]:
    """The columns of STAMP, for now and here. Behind a processor's name stands the instruction set
    that the CPU kernels use: one name covers processors with AVX-512 and without.
    """
    import torch

    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": processor(torch.device(device)),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dry_run": int(dry_run),
    }


def processor(device: torch.device) -> str:
    """Its name, and the CPU kernels' instruction set where they run on it."""
    name = device_name(device)
    known = device.type == "cpu" and native.cpu_missing() is None
    return f"{name}, {native.cpu_isa()}" if known else name


def commit() -> str:
    """Short hash of the checkout, "+" behind it where files are changed; "unknown" without git."""
    root = Path(__file__).resolve().parent.parent
    try:
        head, changed = (
            subprocess.run(
                ["git", *words], cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows of equal keys. ValueError where the file has other columns; all or none
    of the rows are written.
    """
    if not rows:
        return
    columns = list(rows[0])
    if path.exists() and path.stat().st_size:
        with path.open(newline="", encoding="utf-8") as file:
            present = next(csv.reader(file), [])
        if present != columns:
            raise ValueError(f"{path}: has columns {present}, expected {columns}")
    fresh = not path.exists() or not path.stat().st_size
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if fresh:
        writer.writeheader()
    writer.writerows(rows)
    append_whole(path, text.getvalue().encode())


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a results file, dry runs left out. ValueError, one line, where there are none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}), expected a results file") from None
    rows = [row for row in rows if row.get("dry_run", "0") in ("", "0")]
    if not rows:
        raise ValueError(f"{path}: no measured rows, expected some")
    return rows


def latest(rows: Sequence[dict[str, str]], keys: Sequence[str]) -> list[dict[str, str]]:
    """The last row of every case, cases being told apart by `keys`."""
    return list({tuple(row[key] for key in keys): row for row in rows}.values())


def named(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows, the instruction set behind the names of their devices, weights that are shipped no
    longer under a name of their own.
    """
    model, since = RENEWED
    every = [{**row, "device": EARLIER.get(row["device"], row["device"])} for row in rows]
    for row in every:
        if row.get("model") == model and row["time"] < since:
            row["model"] = f"{model}, earlier weights"
    return every


def by_device(rows: Iterable[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The rows of each device, as `named` has it, devices as they come."""
    devices: dict[str, list[dict[str, str]]] = {}
    for row in named(rows):
        devices.setdefault(row["device"], []).append(row)
    return devices
