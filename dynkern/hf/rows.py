"""RowBatch: padded ids in, unpadded rows for the engine, padded ids out."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.arguments import shown


class RowBatch:
    """Rows of a padded batch.

    input_ids: int64 [B, T]. attention_mask: [B, T] of 0/1, or None: then tokens equal to
    pad_token_id (where it is given) are padding, as in transformers. Padding may stand on the left
    and on the right; a hole inside a row, or an empty row, is a ValueError.

    left_ids, left_mask: int64 [B, T], the same rows with all of their padding on the left.
    """

    def __init__(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, pad_token_id: int | None
    ) -> None:
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.numel() == 0:
            shape = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else input_ids
            raise ValueError(f"input_ids: got {shape}, expected a tensor [rows, tokens], not empty")
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise ValueError(f"input_ids: got dtype {input_ids.dtype}, expected int64")
        self.input_ids = input_ids.long()
        keep = self._mask(attention_mask, pad_token_id)
        self.prompts: list[tuple[int, ...]] = []
        left: list[Tensor] = []
        for row in range(input_ids.shape[0]):
            index = keep[row].nonzero().flatten()
            if len(index) == 0:
                raise ValueError(f"attention_mask: row {row} has no token, expected at least one")
            first, last = int(index[0]), int(index[-1])
            if last - first + 1 != len(index):
                raise ValueError(
                    f"attention_mask: row {row} has a hole, expected padding only at its ends"
                )
            self.prompts.append(tuple(self.input_ids[row, first : last + 1].tolist()))
            left.append(self.input_ids[row].roll(self.width - 1 - last))
        self.left_ids = torch.stack(left)
        lengths = torch.tensor([[len(p)] for p in self.prompts], device=input_ids.device)
        columns = torch.arange(self.width, device=input_ids.device)
        self.left_mask = (columns >= self.width - lengths).long()

    @property
    def width(self) -> int:
        """Tokens of a padded row."""
        return self.input_ids.shape[1]

    @property
    def padding(self) -> list[int]:
        """How many tokens of each row are padding."""
        return [self.width - len(prompt) for prompt in self.prompts]

    def _mask(self, attention_mask: Tensor | None, pad_token_id: int | None) -> Tensor:
        if attention_mask is None:
            if pad_token_id is None:
                return torch.ones_like(self.input_ids, dtype=torch.bool)
            return self.input_ids != pad_token_id
        if not isinstance(attention_mask, Tensor):
            raise ValueError(f"attention_mask: got {shown(attention_mask)}, expected a tensor")
        if tuple(attention_mask.shape) != tuple(self.input_ids.shape):
            raise ValueError(
                f"attention_mask: got shape {tuple(attention_mask.shape)}, "
                f"expected {tuple(self.input_ids.shape)}"
            )
        keep = attention_mask != 0
        other = attention_mask[keep & (attention_mask != 1)]
        if len(other):
            raise ValueError(f"attention_mask: got {other[0].item()}, expected only 0 and 1")
        return keep

    def echo(self, new: Tensor) -> Tensor:
        """The prompts as given, then generated ids [B·n, N] (n rows a prompt): [B·n, T + N]."""
        copies = new.shape[0] // len(self.prompts)
        return torch.cat([self.input_ids.repeat_interleave(copies, dim=0), new], dim=1)
