"""What a CUDA process holds besides its tensors: library workspaces, the context, allocator slack."""

from estimators.interval import Interval
from profiles.gpu import GpuSpec
from profiles.units import MIB

# aten/cuda/CublasHandlePool.cpp parseChosenWorkspaceSize: ':4096:2:16:8' = 4096*2 + 16*8 KiB; 32 MiB from sm90 on
CUBLAS_WORKSPACE = 8_519_680
CUBLAS_WORKSPACE_SM90 = 32 * MIB
MULTIPLYING_THREADS = 2  # forward's and autograd's, each with a handle of its own

# Context of one process: 141 MiB on a T4 (torch 2.10, fitcheck-llm 0.3.1 measurements of 2026-09) to 0.5-0.75 GiB seen
# as nvidia-smi minus reserved on A100/H100 rows; the kernels loaded on first use (lazy loading) make the spread.
CONTEXT_LOW = 140 * MIB
CONTEXT_EXPECTED = 350 * MIB
CONTEXT_HIGH = 600 * MIB
CONTEXT_TURING = 141 * MIB


def cublas_workspace(capability: tuple[int, int]) -> int:
    """Bytes that a thread's first matmul takes for good."""
    return CUBLAS_WORKSPACE_SM90 if capability >= (9, 0) else CUBLAS_WORKSPACE


def workspace_bytes(gpu: GpuSpec) -> float:
    """cuBLAS workspaces, allocated from torch's own pool. Zero on a CPU."""
    if gpu.vendor == "CPU":
        return 0.0
    return float(MULTIPLYING_THREADS * cublas_workspace(gpu.compute_capability or (8, 0)))


def context_bytes(gpu: GpuSpec) -> Interval:
    """Memory that the driver takes for a process before any tensor."""
    if gpu.vendor == "CPU":
        return Interval(low=0, expected=0, high=0)
    expected = CONTEXT_TURING if gpu.compute_capability == (7, 5) else CONTEXT_EXPECTED
    return Interval(low=CONTEXT_LOW, expected=expected, high=CONTEXT_HIGH)


def device_interval(reserved: Interval, gpu: GpuSpec) -> Interval:
    """What the card shows as used by a process whose allocator has `reserved`; bytes of one card."""
    context = context_bytes(gpu)
    return Interval(
        low=reserved.low + context.low,
        expected=reserved.expected + context.expected,
        high=reserved.high + context.high,
    )
