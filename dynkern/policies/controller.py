"""controller:PATH: trained skip controllers, compiled away where their input is fixed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from dynkern.controller_file import GateStack, read_controller
from dynkern.models.signature import Readable, differs, signature
from dynkern.policies.planned import FixedRoute
from dynkern.routes import TokenProgram

logger = logging.getLogger("dynkern")


def load_controller(path: str, sampled: bool = False) -> FixedController | Controller:
    """The policy of a controller's file; a fixed input's arg-max is a planned policy.

    sampled: gates draw by their probability (as arXiv 2410.20022's authors generate) instead of
    taking the arg-max. FileNotFoundError or ValueError, one line, for a file that is none.
    """
    stack = read_controller(path, sampled)
    if stack.signature is None:
        logger.warning("controller: %s does not say what model it was trained for", path)
    if stack.info.input == "fixed" and not sampled:
        return FixedController(path, stack)
    return Controller(path, stack)


def _check(stack: GateStack, num_layers: int) -> None:
    if stack.info.num_layers != num_layers:
        raise ValueError(
            f"controller: trained for a model of {stack.info.num_layers} layers, expected "
            f"{num_layers}"
        )


class _OfOneModel:
    """What both kinds know of the model that they were trained for."""

    path: str
    stack: GateStack

    def check_model(self, weights: Readable, name: str) -> None:
        """Raise a one-line ValueError where the weights are those of another model than the one
        trained for, `name` being theirs.
        """
        own = self.stack.signature
        if own is not None and differs(own, signature(weights, self.stack.info.num_layers)):
            raise ValueError(
                f"controller: {self.path} was trained for {self.stack.info.model or 'a model'}, "
                f"whose weights are not those of {name}"
            )


@dataclass(frozen=True)
class FixedController(_OfOneModel, FixedRoute):
    """Arg-max gates on a fixed input: one route, known ahead."""

    path: str
    stack: GateStack

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return f"controller:{self.path}"

    def route(self, num_layers: int) -> Tensor:
        _check(self.stack, num_layers)
        # equal logits skip, as in ops.gate
        return torch.tensor(self.stack.constant_probabilities()) > 0.5


@dataclass(frozen=True)
class Controller(_OfOneModel):
    """Gates that decide in every pass, or draw by a probability per layer."""

    path: str
    stack: GateStack

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return f"controller:{self.path}" + (",sample=1" if self.stack.sampled else "")

    def check(self, num_layers: int) -> None:
        """Raise a one-line ValueError unless trained for a model of num_layers."""
        _check(self.stack, num_layers)

    def lower(self, num_layers: int) -> TokenProgram:
        """The program for a model of num_layers."""
        self.check(num_layers)
        if self.stack.info.input == "fixed":
            return TokenProgram("bernoulli", self.stack.constant_probabilities())
        return TokenProgram("controller", gates=self.stack)
