"""Elements of small tensors that change one at a time, as rows come and go."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def cells(tensor: Tensor) -> Any:
    """What to read and set elements through: on the host an array over the same memory, which
    takes a tenth of the time (0.4 against 4 µs), else the tensor itself.
    """
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
