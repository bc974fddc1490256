"""Skip controllers as modules: hard straight-through Gumbel-softmax gates on layers 1..L-2.

Logits of (skip, run) come from one linear layer or an MLP, per gated layer, on the detached
residual entering the layer ("hidden"), an all-ones vector ("fixed"), or the embedding of the
token's position or of the token (arXiv 2410.20022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynkern import rng
from dynkern.controller_file import INPUTS, ControllerInfo
from dynkern.routes import check_choice

# a counter's stream of its own, beside those of dynkern.rng
_STREAM_GUMBEL = 10


def gumbel_noise(seed: int, step: int, record: Tensor, token: Tensor, layer: Tensor) -> Tensor:
    """Standard Gumbel draws, float32 [..., 2], for int64 counters that broadcast to [...].

    Those of a token of a record at a step: the same in whatever batch and process. seed and step:
    below 2**32.
    """
    # four counters are taken, so the step goes into the key
    words = rng.philox((record, token, layer, _STREAM_GUMBEL), seed + (step << 32))
    return -(-rng.open_uniforms(torch.stack(words[:2], dim=-1)).log()).log()


def soft_gate(logits: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Share of "run" in softmax((logits + noise) / tau): [...], for logits [..., 2]."""
    return ((logits + noise) / tau).softmax(dim=-1)[..., 1]


def straight_through(logits: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Hard bits 0 or 1 of soft_gate, with its gradient; equal shares skip, as in ops.gate."""
    soft = soft_gate(logits, noise, tau)
    hard = (soft > 0.5).to(soft.dtype)
    return hard + (soft - soft.detach())


class Gates(nn.Module):
    """Gates of a model of num_layers. `gates(layer, x, noise)`: bits [...] for inputs x [..., D].

    depth: linear layers, 1 to 3. width: of the hidden ones. noise: gumbel_noise [..., 2], under
    which a bit is drawn at temperature tau; without it the arg-max decides. ValueError on anything
    out of range.
    """

    def __init__(
        self,
        input: str,
        num_layers: int,
        input_size: int,
        depth: int = 1,
        width: int = 64,
        tau: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("input", input, INPUTS)
        if depth not in (1, 2, 3):
            raise ValueError(f"depth: got {depth}, expected 1, 2 or 3")
        if width < 1:
            raise ValueError(f"width: got {width}, expected 1 or more")
        if not tau > 0:
            raise ValueError(f"tau: got {tau}, expected a number above 0")
        if num_layers < 3:
            raise ValueError(
                f"controller: the model has {num_layers} layers, expected 3 or more, since the "
                "first and the last always run"
            )
        self.input, self.num_layers, self.input_size = input, num_layers, input_size
        self.depth, self.width, self.tau = depth, width, tau
        # training.budget.Multiplier where a budget is asked for, so that checkpoints hold it
        self.multiplier: nn.Module | None = None
        sizes = [input_size, *[width] * (depth - 1), 2]
        self.layers = nn.ModuleDict({str(layer): _mlp(sizes) for layer in range(1, num_layers - 1)})
        for mlp in self.layers.values():
            with torch.no_grad():
                # a start at 88 % executed: gates shut at random would leave nothing to learn from
                mlp[-1].bias.copy_(torch.tensor([0.0, 2.0]))
                mlp[-1].weight.mul_(0.1)

    def __contains__(self, layer: int) -> bool:
        return str(layer) in self.layers

    def logits(self, layer: int, x: Tensor) -> Tensor:
        """[..., 2] in float32 (float64 for float64 gates), for "fixed" [2] spread over x's."""
        mlp = self.layers[str(layer)]
        dtype = mlp[0].weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            if self.input == "fixed":
                ones = torch.ones(self.input_size, dtype=dtype, device=x.device)
                return mlp(ones).expand(*x.shape[:-1], 2)
            return mlp(x.to(dtype))

    @torch.no_grad()
    def shift(self, by: float) -> None:
        """Add `by` to every gate's logit of running."""
        for mlp in self.layers.values():
            mlp[-1].bias[1] += by

    def forward(self, layer: int, x: Tensor, noise: Tensor | None = None) -> Tensor:
        logits = self.logits(layer, x)
        if noise is None:
            return (logits[..., 1] > logits[..., 0]).to(logits.dtype)
        return straight_through(logits, noise, self.tau)

    def export(
        self, alpha: float, joint: bool, budget: float | None = None, model: str = ""
    ) -> tuple[ControllerInfo, dict[str, Tensor]]:
        """What controller_file.write_controller takes."""
        tensors = {}
        for layer, mlp in self.layers.items():
            for place, linear in enumerate(m for m in mlp if isinstance(m, nn.Linear)):
                tensors[f"layers.{layer}.{place}.weight"] = linear.weight
                tensors[f"layers.{layer}.{place}.bias"] = linear.bias
        info = ControllerInfo(
            self.input,
            self.num_layers,
            self.input_size,
            self.depth,
            self.width,
            self.tau,
            alpha,
            joint,
            budget,
            model,
        )
        return info, tensors


def _mlp(sizes: list[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])
