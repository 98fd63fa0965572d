"""What a CUDA process holds besides its tensors: library workspaces, the context, allocator slack."""

from estimators.interval import Interval
from profiles.catalog import get_overhead
from profiles.gpu import GpuSpec

MULTIPLYING_THREADS = 2  # forward's and autograd's, each with a cuBLAS handle of its own
DEFAULT_CAPABILITY = (8, 0)


def cublas_workspace(capability: tuple[int, int]) -> int:
    """Bytes that a thread's first matmul takes for good."""
    return get_overhead("workspace", capability).expected_bytes


def workspace_bytes(gpu: GpuSpec) -> float:
    """cuBLAS workspaces, allocated from torch's own pool. Zero on a CPU."""
    if gpu.vendor == "CPU":
        return 0.0
    return float(MULTIPLYING_THREADS * cublas_workspace(gpu.compute_capability or DEFAULT_CAPABILITY))


def context_bytes(gpu: GpuSpec) -> Interval:
    """Memory that the driver takes for a process before any tensor."""
    if gpu.vendor == "CPU":
        return Interval(low=0, expected=0, high=0)
    row = get_overhead("context", gpu.compute_capability or DEFAULT_CAPABILITY)
    return Interval(low=row.low_bytes, expected=row.expected_bytes, high=row.high_bytes)


def device_interval(reserved: Interval, gpu: GpuSpec) -> Interval:
    """What the card shows as used by a process whose allocator has `reserved`; bytes of one card."""
    context = context_bytes(gpu)
    return Interval(
        low=reserved.low + context.low,
        expected=reserved.expected + context.expected,
        high=reserved.high + context.high,
    )
