"""dynkern: layer skipping, early exit and per-sequence depth turned into wall-clock speed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dynkern._version import __version__

if TYPE_CHECKING:
    from dynkern.evaluation.measured_cost import measure_cost
    from dynkern.hf import OPTForCausalLM, accelerate
    from dynkern.llm import LLM
    from dynkern.ops.backends import use_backend
    from dynkern.policies import is_planned, policy

__all__ = [
    "LLM",
    "OPTForCausalLM",
    "__version__",
    "accelerate",
    "is_planned",
    "measure_cost",
    "policy",
    "use_backend",
]

_HOMES = {
    "LLM": "dynkern.llm",
    "measure_cost": "dynkern.evaluation.measured_cost",
    "OPTForCausalLM": "dynkern.hf",
    "accelerate": "dynkern.hf",
    "policy": "dynkern.policies",
    "is_planned": "dynkern.policies",
    "use_backend": "dynkern.ops.backends",
}


def __getattr__(name: str) -> Any:
    # torch alone takes seconds to import: `dynkern --help` must not pay for it
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name.startswith("__"):
        # what is probed for is no room, and importing __main__ would run the command line
        raise AttributeError(f"module 'dynkern' has no attribute {name!r}")
    try:
        return importlib.import_module(f"dynkern.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"dynkern.{name}":
            raise
        raise AttributeError(f"module 'dynkern' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
