"""What the machine can do, read in the same run: bandwidth, arithmetic peak; and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynkern.evaluation.timing import interleave
from dynkern.kernels import native
from dynkern.machine import device_name

if TYPE_CHECKING:
    import torch

# below this a read lasts about as long as launching it: a torch op costs some 5 us, in which two
# CPU cores read 1 MB from cache and a GPU 20 MB
CPU_FLOOR_BYTES = 8 << 20
GPU_FLOOR_BYTES = 64 << 20
# launches in flight before each wait for the GPU, so that its queue never runs dry
GPU_BURST = 20


@dataclass(frozen=True)
class Peaks:
    """Measured limits. bandwidth: bytes/s read; flops: operations/s (a multiply-add is two).

    n_threads: torch's threads; device: its name; working_set_bytes: the buffer that was read;
    reader: the read that was fastest. loaded: other processes disturbed it; metered: whether that
    could be seen.
    """

    bandwidth: float
    flops: float
    n_threads: int
    device: str
    working_set_bytes: int
    reader: str
    loaded: bool
    metered: bool


def measure_peaks(
    working_set_bytes: int,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    *,
    repeats: int = 3,
    matrix_size: int | None = None,
    **options: Any,
) -> Peaks:
    """Bandwidth of reading `working_set_bytes` again and again, and peak of a matrix product.

    Give the bytes of the model's weights: a model that stays in a cache must be held against that
    cache's bandwidth. Sets under 8 MB (GPU: 64 MB) are read as that size. Several reads are tried
    and the fastest counts, since any one may be bound by its instructions rather than by memory.
    The peak is a square product in `dtype`, or on a CPU in float32 if that is faster (weights can
    be widened as they are read). matrix_size: by default 1024, on a GPU 8192. Medians over
    `repeats` rounds; options: those of `interleave`. ValueError on a bad size, dtype or device.
    """
    import torch

    if working_set_bytes < 1:
        raise ValueError(f"working_set_bytes: got {working_set_bytes}, expected 1 or more")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: got {dtype}, expected the floating-point type of the arithmetic")
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got '{device}', expected cpu or cuda")
    on_gpu = device.type == "cuda"
    size = max(working_set_bytes, GPU_FLOOR_BYTES if on_gpu else CPU_FLOOR_BYTES)
    with torch.inference_mode():
        readers = _readers(size, device)
        products = _products(matrix_size or (8192 if on_gpu else 1024), dtype, device)
        burst = GPU_BURST if on_gpu else 1

        def case(run: Callable[[], Any]) -> Callable[[], None]:
            def repeated() -> None:
                for _ in range(burst):
                    run()
                if on_gpu:
                    torch.cuda.synchronize(device)

            return repeated

        work = {**readers, **products}
        timings = interleave({k: case(run) for k, (run, _) in work.items()}, repeats, **options)
    rates = {k: amount * burst / timings[k].spread.median for k, (_, amount) in work.items()}
    reader = max(readers, key=rates.__getitem__)
    return Peaks(
        bandwidth=rates[reader],
        flops=max(rates[name] for name in products),
        n_threads=torch.get_num_threads(),
        device=device_name(device),
        working_set_bytes=size,
        reader=reader,
        loaded=bool(timings.loaded),
        metered=timings.metered,
    )


Work = dict[str, tuple[Callable[[], Any], float]]


def _readers(size: int, device: torch.device) -> Work:
    """Ops that read a buffer of `size` bytes, and the bytes that each moves."""
    import torch

    columns = 2048
    rows = -(-size // (4 * columns))
    buffer = torch.empty(rows, columns, device=device)
    own = device.type == "cpu" and native.cpu_missing() is None
    if own:
        # the weights lie in huge pages, and so must what stands for them
        native.cpu_library().dynkern_cpu_advise(buffer.data_ptr(), buffer.nbytes)
    buffer.fill_(1.0)
    flat, vector = buffer.view(-1), torch.ones(columns, device=device)
    moved = float(flat.numel() * 4)
    readers: Work = {
        "sum": (flat.sum, moved),
        "maximum": (flat.amax, moved),
        "dot": (lambda: torch.dot(flat, flat), moved),
        "matrix-vector": (lambda: torch.mv(buffer, vector), moved),
    }
    if own:
        # torch's reductions stop at two thirds of what a cache-sized buffer can give
        read = native.cpu_library().dynkern_cpu_read
        threads = torch.get_num_threads()
        readers["plain read"] = (lambda: read(buffer.data_ptr(), buffer.numel(), threads), moved)
    if device.type == "cuda":
        # a copy keeps more requests in flight than a reduction; half of its traffic are writes
        half = flat.numel() // 2
        readers["copy"] = (lambda: flat[:half].copy_(flat[half : 2 * half]), half * 8.0)
    return readers


def _products(n: int, dtype: torch.dtype, device: torch.device) -> Work:
    """Square matrix products of size n, and the operations of each."""
    import torch

    dtypes = {dtype} if device.type == "cuda" else {dtype, torch.float32}
    products: Work = {}
    for kind in sorted(dtypes, key=str):
        a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
        out = torch.empty(n, n, dtype=kind, device=device)
        products[f"product {kind}"] = (
            lambda a=a, b=b, out=out: torch.mm(a, b, out=out),
            2.0 * n**3,
        )
    return products


class PeakMemory:
    """`with PeakMemory(device) as memory: …`, then `memory.bytes`: the most that was held inside.

    CPU: the process's resident memory, the interpreter and libraries included (Linux: the kernel's
    own high-water mark, reset on entry). CUDA: tensors allocated on the device. `start_bytes` is
    what was held on entry. Both are None where the system cannot tell.
    """

    bytes: int | None = None
    start_bytes: int | None = None

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._on_gpu = str(device).startswith("cuda")
        self._device = device

    def __enter__(self) -> PeakMemory:
        if self._on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            self.start_bytes = torch.cuda.memory_allocated(self._device)
        elif _reset_high_water_mark():
            self.start_bytes = _high_water_mark()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._on_gpu:
            import torch

            self.bytes = torch.cuda.max_memory_allocated(self._device)
        elif self.start_bytes is not None:
            self.bytes = _high_water_mark()


def _reset_high_water_mark() -> bool:
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
            clear.write("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None
