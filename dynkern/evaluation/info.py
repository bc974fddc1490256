"""`dynkern info`: versions, devices, native libraries, each op's backend and the reason."""

from __future__ import annotations

import importlib.metadata
import platform

import torch
from rich.console import Console
from rich.table import Table

from dynkern._version import __version__
from dynkern.kernels import native
from dynkern.kernels.invariance import is_batch_invariant
from dynkern.ops import OPS, backends

GPU_NOTE = (
    "passes are captured in CUDA graphs over the kernels above (DYNKERN_EXECUTOR); no kernel of "
    "this version has run on a GPU yet, see README"
)
_LOST = {
    "cpu": "the engine that runs whole passes in C++, int8, and the CPU kernels of single ops, "
    "whose PyTorch reference runs instead",
    "cuda": "the CUDA kernels, for which Triton's stand in on a GPU",
}
_PACKAGES = ("torch", "transformers", "triton", "tokenizers", "safetensors", "datasets")


def print_info() -> None:
    """Print it all to stdout."""
    console = Console()
    console.print(f"dynkern {__version__}, Python {platform.python_version()}", highlight=False)
    console.print(", ".join(_versions()), highlight=False)
    console.print(_devices(), highlight=False)
    for name, state in native.status().items():
        console.print(f"csrc/{name}: {_library(name, state)}", highlight=False, soft_wrap=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = Table(title=f"ops on {device}, backend {backends.requested_backend()}")
    for column in ("op", "backend", "why", "kernels"):
        table.add_column(column, no_wrap=column == "op")
    for (label, backend, reason), op in zip(backends.table(device), OPS.values(), strict=True):
        table.add_row(label, backend, reason, " ".join(op.kernels))
    console.print(table)
    console.print(f"batch_invariant: {_mode()}", highlight=False, soft_wrap=True)
    console.print(f"GPU: {GPU_NOTE}", highlight=False, soft_wrap=True)


def _mode() -> str:
    """What the mode is here, and what it costs."""
    if is_batch_invariant():
        return "on (DYNKERN_BATCH_INVARIANT): one kernel family, tiles and splits by sizes alone"
    return "off (LLM(batch_invariant=True)); the CPU engine's rows never depend on their batch"


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return found


def _devices() -> str:
    threads = f"CPU with {torch.get_num_threads()} torch threads"
    if not torch.cuda.is_available():
        return f"{threads}; no GPU that torch can see"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{threads}; GPU {', '.join(names)}"


def _library(name: str, state: dict) -> str:
    if not state["available"]:
        return f"not available: {state['reason']}; lost: {_LOST[name]}"
    if name == "cpu":
        extensions = " ".join(state["isa"]) or "no extensions"
        return f"{state['path']}, uses {state['level']}, this processor has {extensions}"
    reason = f": {state['devices_reason']}" if state["devices_reason"] else ""
    return f"{state['path']}, {state['devices']} devices{reason}"
