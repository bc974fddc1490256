"""The only dispatch: which backend runs an op, and why.

Every op is defined once with `define_op`; the torch operator `torch.ops.dynkern.<name>` asks
`resolve` for the kernel at each call. Nothing else in the project tests for a device or a library.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from dynkern.kernels import triton as triton_kernels
from dynkern.kernels.invariance import is_batch_invariant

logger = logging.getLogger("dynkern")

BACKENDS = ("reference", "cpu", "triton", "cuda")
DEVICES = ("cpu", "cuda")
# what "auto" tries on each device, best first
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
# CUDA C++ is chosen only where it was measured faster than Triton; by name it can always be had
_UNMEASURED = {("ragged_linear", "cuda")}
# kernels whose sums may take another order with the number of rows
_ROW_DEPENDENT = {("ragged_linear", "cuda")}
_RUNS_ON = {"reference": DEVICES, "cpu": ("cpu",), "triton": ("cuda",), "cuda": ("cuda",)}
LIBRARY = torch.library.Library("dynkern", "DEF")


class BackendUnavailable(ValueError):
    """A backend asked for by name cannot run an op here; the message says which and why."""


@dataclass(frozen=True)
class Kernel:
    """One implementation: `function` has the op's signature.

    missing() says why it cannot run here at all; refuses(*args) why it does not take one call's
    arguments (a dtype, strides). Both return None where nothing is in the way. No kernel but the
    reference records gradients, and none of the others gets a call that wants one.
    """

    function: Callable[..., Any]
    missing: Callable[[], str | None] = lambda: None
    refuses: Callable[..., str | None] | None = None


def triton_kernel(name: str, function: str | None = None, any_dtype: bool = False) -> Kernel:
    """`function` (default: `name`) of kernels/triton/<name>.py. any_dtype: float64 as well."""
    launcher = triton_kernels.launcher(name, function)
    refuses = None if any_dtype else triton_kernels.refuses
    return Kernel(launcher, triton_kernels.missing, refuses)


@dataclass(frozen=True)
class Choice:
    """The backend that an op takes on a device, and the reason in a few words."""

    backend: str
    reason: str
    kernel: Kernel


@dataclass
class Op:
    """An op of the table: schema, argument check, kernels by backend."""

    name: str
    overload: str
    schema: str
    check: Callable[..., None]
    kernels: dict[str, Kernel]
    choices: dict[tuple[str, str, bool], Choice] = field(default_factory=dict)

    @cached_property
    def label(self) -> str:
        return f"{self.name}.{self.overload}" if self.overload else self.name

    @cached_property
    def torch_op(self) -> Any:
        return getattr(getattr(torch.ops.dynkern, self.name), self.overload or "default")


OPS: dict[str, Op] = {}
_requested: ContextVar[str | None] = ContextVar("dynkern_backend", default=None)
_told: set[str] = set()


def define_op(
    schema: str,
    *,
    check: Callable[..., None],
    fake: Callable[..., Any],
    **kernels: Kernel | Callable[..., Any],
) -> Op:
    """Define a torch operator and enter it into the table.

    schema: as for torch.library, "name(args) -> result" or "name.overload(args) -> result".
    check: raises a one-line ValueError on bad arguments; runs before any kernel.
    kernels: by backend name; a plain function stands for a kernel that always runs.
    """
    name, _, overload = schema.split("(", 1)[0].partition(".")
    table = {b: k if isinstance(k, Kernel) else Kernel(k) for b, k in kernels.items()}
    op = Op(name, overload, schema, check, table)
    OPS[op.label] = op
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in DEVICES:
        LIBRARY.impl(op.label, _dispatcher(op, device), device.upper())
    # the kernel below records the gradient: the reference, which alone takes calls that want one
    LIBRARY.impl(op.label, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"dynkern::{op.label}", fake, lib=LIBRARY)
    return op


def _dispatcher(op: Op, device: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        op.check(*args, **kwargs)
        choice = resolve(op, device)
        kernel = choice.kernel
        if why := _refusal(op, choice.backend, args):
            kernel = _taker(op, device, why, args)
        return kernel.function(*args, **kwargs)

    return call


def _refusal(op: Op, backend: str, args: tuple[Any, ...]) -> str | None:
    """Why a backend's kernel does not take this call, or None."""
    if backend == "reference":
        return None
    if torch.is_grad_enabled():
        for argument, value in zip(op.torch_op._schema.arguments, args, strict=True):
            for tensor in value if isinstance(value, list) else (value,):
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    return f"{argument.name} requires a gradient"
    refuses = op.kernels[backend].refuses
    return refuses(*args) if refuses else None


def _taker(op: Op, device: str, why: str, args: tuple[Any, ...]) -> Kernel:
    """The kernel for a call that the chosen one refuses."""
    chosen = resolve(op, device).backend
    if requested_backend() != "auto":
        raise BackendUnavailable(
            f"backend {chosen!r} cannot run this {op.label}: {why}; use 'auto'"
        )
    # calls differ, and one that wants a gradient is nothing to be warned of
    _tell(f"{op.label}: {chosen}: {why}", logging.INFO)
    order = _PREFERENCE[device]
    for backend in order[order.index(chosen) + 1 :]:
        if _obstacle(op, device, backend) is None and _refusal(op, backend, args) is None:
            return op.kernels[backend]
    raise BackendUnavailable(f"no backend runs this {op.label} on {device}: {chosen}: {why}")


def _tell(note: str, level: int = logging.WARNING) -> None:
    if note not in _told:
        _told.add(note)
        logger.log(level, "%s; falling back", note)


def requested_backend() -> str:
    """The backend asked for: innermost `use_backend`, else DYNKERN_BACKEND, else "auto"."""
    name = _requested.get()
    if name is not None:
        return name
    return check_backend("DYNKERN_BACKEND", os.environ.get("DYNKERN_BACKEND") or "auto")


def check_backend(argument: str, name: str) -> str:
    """`name` if it is "auto" or a backend, else a one-line ValueError."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{argument}: got {name!r}, expected one of auto, {', '.join(BACKENDS)}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block on the named backend ("auto" for the table's choice).

    Raises ValueError for an unknown name at once; BackendUnavailable (a ValueError) at the first
    op that the backend cannot run.
    """
    token = _requested.set(check_backend("use_backend", name))
    try:
        yield
    finally:
        _requested.reset(token)


def resolve(op: Op, device: str) -> Choice:
    """The kernel for `op` on `device` under the requested backend."""
    name = requested_backend()
    key = device, name, is_batch_invariant()
    choice = op.choices.get(key)
    if choice is None:
        choice = _named(op, device, name) if name != "auto" else _automatic(op, device)
        op.choices[key] = choice
    return choice


def _obstacle(op: Op, device: str, backend: str) -> str | None:
    if device not in _RUNS_ON[backend]:
        return f"it does not run on {device} tensors"
    if backend not in op.kernels:
        return "no such kernel"
    if (op.name, backend) in _ROW_DEPENDENT and is_batch_invariant():
        return "its sums may depend on the number of rows, and batch_invariant is on"
    return op.kernels[backend].missing()


def _named(op: Op, device: str, name: str) -> Choice:
    obstacle = _obstacle(op, device, name)
    if obstacle:
        raise BackendUnavailable(
            f"backend {name!r} cannot run {op.label} on {device}: {obstacle}; use 'auto'"
        )
    return Choice(name, "asked for by name", op.kernels[name])


def _automatic(op: Op, device: str) -> Choice:
    passed_over = []
    for backend in _PREFERENCE[device]:
        obstacle = _obstacle(op, device, backend)
        is_unmeasured = (op.name, backend) in _UNMEASURED
        if obstacle is None and not is_unmeasured:
            kernel, reason = op.kernels[backend], "; ".join(passed_over) or "first choice"
            return Choice(backend, reason, kernel)
        passed_over.append(f"{backend}: {obstacle or 'not measured against triton yet'}")
        # a kernel that does not exist is no news, nor one passed over by rule; one that exists and
        # cannot run is
        if backend in op.kernels and not is_unmeasured:
            _tell(f"{op.label}: {passed_over[-1]}")
    raise BackendUnavailable(f"no backend runs {op.label} on {device}: {'; '.join(passed_over)}")


def check_runnable(name: str, device: str) -> None:
    """Raise BackendUnavailable, naming the ops, unless `name` runs every op on `device`."""
    if check_backend("backend", name) == "auto":
        return
    obstacles = {op.label: _obstacle(op, device, name) for op in OPS.values()}
    failing = {label: why for label, why in obstacles.items() if why}
    if failing:
        label, why = next(iter(failing.items()))
        more = f" (and {len(failing) - 1} more ops)" if len(failing) > 1 else ""
        raise BackendUnavailable(
            f"backend: {name!r} cannot run {label} on {device}: {why}{more}; use 'auto'"
        )


def table(device: str) -> list[tuple[str, str, str]]:
    """(op, backend, reason) of the automatic choice for every op: what `dynkern info` prints."""
    choices = ((op, _automatic(op, device)) for op in OPS.values())
    return [(op.label, choice.backend, choice.reason) for op, choice in choices]


def forget_choices() -> None:
    """Drop remembered choices, so that changed availability is seen (tests)."""
    for op in OPS.values():
        op.choices.clear()
    _told.clear()
