"""ResidualStream: the hidden states of a pass and the sublayer output not yet added to them."""

from __future__ import annotations

from torch import Tensor

from dynkern.kernels.invariance import is_batch_invariant
from dynkern.models.spec import DecoderSpec
from dynkern.ops import ragged_linear, residual_bypass_layer_norm, residual_bypass_linear

Norm = tuple[Tensor | None, Tensor | None]

# rows up to which a norm and its linear are one op: above, every backend runs the two one after
# the other, and the new stream that the one op hands back would be a copy for nothing
FUSED_ROWS = 128


class ResidualStream:
    """h [B, D] with at most one pending sublayer output.

    Adding waits for the next reader, so that one op adds, norms and gathers: one read and one
    write of h for each sublayer, whichever rows ran it. `linear` may put another tensor in h's
    place, the others write into it.
    """

    def __init__(self, h: Tensor, spec: DecoderSpec) -> None:
        self.h, self.spec = h, spec
        self._pending: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._post_norm: Norm = (None, None)

    @property
    def pending(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """delta, delta_rows and n_delta still to be added."""
        return self._pending

    def add(self, delta: Tensor, rows: Tensor, n: Tensor | None, norm: Norm) -> None:
        """Queue a sublayer's output for `rows[:n]`; `norm` is its own, for post-norm models."""
        self._pending, self._post_norm = (delta, rows, n), norm

    def normed(self, rows: Tensor, n: Tensor | None, norm: Norm, present: bool = True) -> Tensor:
        """Rows as the next sublayer reads them: through `norm` where the model norms first."""
        if self.spec.pre_norm and present:
            return self._take(rows, n, "pre", norm)
        return self.raw(rows, n)

    def raw(self, rows: Tensor, n: Tensor | None) -> Tensor:
        """Rows of the residual stream themselves."""
        return self._take(rows, n, *self._plain())

    def linear(
        self,
        rows: Tensor,
        n: Tensor | None,
        norm: Norm,
        weight: Tensor,
        bias: Tensor | None,
        activation: str = "none",
    ) -> Tensor:
        """The sublayer's first linear layer over `normed` rows."""
        # a tile of the one op depends on how many rows there are
        if len(self.h) > FUSED_ROWS or is_batch_invariant():
            x = self.normed(rows, n, norm)
            return ragged_linear(x, weight, bias, None, n, activation)
        kind, norm = ("pre", norm) if self.spec.pre_norm else self._plain()
        lists = rows, n, kind, self.spec.norm_eps
        self.h, y = residual_bypass_linear(
            self.h, *self._pop(), *norm, *lists, weight, bias, activation
        )
        return y

    def _plain(self) -> tuple[str, Norm]:
        return ("none", (None, None)) if self.spec.pre_norm else ("post", self._post_norm)

    def _pop(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        pending, self._pending = self._pending or (None, None, None), None
        return pending

    def _take(self, rows: Tensor, n: Tensor | None, kind: str, norm: Norm) -> Tensor:
        return residual_bypass_layer_norm(
            self.h, *self._pop(), *norm, rows, n, kind, self.spec.norm_eps
        )
