"""Policies decide which layers a row runs: planned ones ahead of decoding, token ones within it.

A planned policy is any object with `plan(requests) -> routes`; a token policy any object with
`lower(num_layers) -> TokenProgram`. `policy("uniform:6")` builds the ones of README's table.
"""

from __future__ import annotations

from typing import Any

from dynkern.arguments import shown
from dynkern.policies.parse import parse
from dynkern.policies.planned import EarlyExit, Full, Random, Uniform, UniformEven
from dynkern.policies.token import Confidence, RandomStep, Stochastic
from dynkern.routes import TokenProgram
from dynkern.runtime.request import PlannedPolicy, PlanRequest, Policy, TokenPolicy

__all__ = [
    "Confidence",
    "EarlyExit",
    "Full",
    "PlanRequest",
    "PlannedPolicy",
    "Policy",
    "Random",
    "RandomStep",
    "Stochastic",
    "TokenPolicy",
    "Uniform",
    "UniformEven",
    "is_planned",
    "policy",
]


def policy(spec: str | Policy) -> Policy:
    """A policy from its spec string; a policy object is handed back as it is.

    Raises ValueError, one line, on anything else.
    """
    if isinstance(spec, str):
        return parse(spec)
    # bytes have a `lower` of another kind, and a class has the methods of its objects
    if isinstance(spec, PlannedPolicy | TokenPolicy) and not isinstance(
        spec, bytes | bytearray | type
    ):
        return spec
    raise ValueError(
        f"policy: got {type(spec).__name__}, expected a spec string, or an object with "
        "plan(requests) or lower(num_layers)"
    )


def is_planned(policy: Policy) -> bool:
    """Whether the policy's route is known before a sequence decodes."""
    return not isinstance(policy, TokenPolicy)


def check_policy(policy: Any, num_layers: int) -> None:
    """Raise ValueError unless the policy fits a model of num_layers (where it can tell ahead)."""
    check = getattr(policy, "check", None)
    if check is not None:
        check(num_layers)
    if isinstance(policy, TokenPolicy):
        name = f"policy {getattr(policy, 'spec', type(policy).__name__)}"
        program = policy.lower(num_layers)
        if not isinstance(program, TokenProgram):
            raise ValueError(f"{name}: got {shown(program)}, expected a TokenProgram")
        program.check(name, num_layers)
