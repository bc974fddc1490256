"""A pytest plugin: Triton kernels run on CPU tensors under triton's interpreter.

    python -m pytest -p support.interpreter ...

Every module that imports triton must come after it, hence a process of its own. Programs of a
launch run in a shuffled order, so that one that waits for another shows, and new buffers are
poisoned.
"""

from __future__ import annotations

import os
import random

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from dynkern.ops import backends  # noqa: E402
from support import samples  # noqa: E402

# a program takes about a millisecond: the samples keep their shapes and lose rows
samples.ROWS = ((1, 1), (1, 0), (7, 3), (7, 7), (17, 11), (17, 0))
_sample = samples.MAKERS["sample"]


def _few_rows(make):
    for sample in _sample(make):
        sample.args = [a[:7] if isinstance(a, torch.Tensor) else a for a in sample.args]
        yield sample


samples.MAKERS["sample"] = _few_rows
backends._RUNS_ON["triton"] = ("cpu", "cuda")
# torch.empty is filled with NaN, and integers with their largest value
torch.use_deterministic_algorithms(True)

_convert_float = interpreter._convert_float
_patch_tensor = interpreter._patch_lang_tensor
_set_grid_dim = interpreter.InterpreterBuilder.set_grid_dim
_set_grid_idx = interpreter.InterpreterBuilder.set_grid_idx


def _convert(values, from_dtype, to_dtype, rounding_mode):
    """The interpreter loses the carry when a mantissa rounds up to a power of two: bfloat16 results
    would be wrong by half once in 512 stores.
    """
    if (from_dtype, to_dtype) == (tl.float32, tl.bfloat16):
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        up = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), 0x7FC0, up).astype(np.uint16)
    return _convert_float(values, from_dtype, to_dtype, rounding_mode)


def _indexed(tensor, scope):
    """Triton 3.6 takes a loop's bound from an array of one element, which numpy 2.4 refuses."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


def _shuffled_dim(builder, *dims):
    _set_grid_dim(builder, *dims)
    builder.order = list(range(dims[0] * dims[1] * dims[2]))
    random.shuffle(builder.order)


def _shuffled_idx(builder, x, y, z):
    nx, ny, nz = builder.grid_dim
    x, rest = divmod(builder.order[(x * ny + y) * nz + z], ny * nz)
    _set_grid_idx(builder, x, *divmod(rest, nz))


interpreter._convert_float = _convert
interpreter._patch_lang_tensor = _indexed
interpreter.InterpreterBuilder.set_grid_dim = _shuffled_dim
interpreter.InterpreterBuilder.set_grid_idx = _shuffled_idx
