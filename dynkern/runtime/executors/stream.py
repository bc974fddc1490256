"""ResidualStream: the hidden states of a pass and the sublayer output not yet added to them."""

from __future__ import annotations

from torch import Tensor

from dynkern.models.spec import DecoderSpec
from dynkern.ops import residual_bypass_layer_norm


class ResidualStream:
    """h [B, D] in place, with at most one pending sublayer output.

    Adding waits for the next reader, so that one op adds, norms and gathers: one read and one
    write of h for each sublayer, whichever rows ran it.
    """

    def __init__(self, h: Tensor, spec: DecoderSpec) -> None:
        self.h, self.spec = h, spec
        self._pending: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._post_norm: tuple[Tensor | None, Tensor | None] = (None, None)

    def add(
        self,
        delta: Tensor,
        rows: Tensor,
        n: Tensor | None,
        norm: tuple[Tensor | None, Tensor | None],
    ) -> None:
        """Queue a sublayer's output for `rows[:n]`; `norm` is its own, for post-norm models."""
        self._pending, self._post_norm = (delta, rows, n), norm

    def normed(
        self,
        rows: Tensor,
        n: Tensor | None,
        norm: tuple[Tensor | None, Tensor | None],
        present: bool = True,
    ) -> Tensor:
        """Rows as the next sublayer reads them: through `norm` where the model norms first."""
        if self.spec.pre_norm and present:
            return self._take(rows, n, "pre", norm)
        return self.raw(rows, n)

    def raw(self, rows: Tensor, n: Tensor | None) -> Tensor:
        """Rows of the residual stream themselves."""
        if self.spec.pre_norm:
            return self._take(rows, n, "none", (None, None))
        return self._take(rows, n, "post", self._post_norm)

    def _take(
        self, rows: Tensor, n: Tensor | None, kind: str, norm: tuple[Tensor | None, Tensor | None]
    ) -> Tensor:
        delta, delta_rows, n_delta = self._pending or (None, None, None)
        self._pending = None
        return residual_bypass_layer_norm(
            self.h, delta, delta_rows, n_delta, *norm, rows, n, kind, self.spec.norm_eps
        )
