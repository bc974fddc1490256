"""Plain PyTorch: the specification of every op. Any device, any float dtype, differentiable.

Arithmetic stays in the dtype given, or float32 where that is wider, so `op(x.double())` is the
truth and `op(x)` the fair baseline. Compacted outputs keep their capacity; rows from n_active on
are unspecified, and NaN here so that a reader of such a row shows.
"""
