"""Probes of single kernels: matmul by shape, copies, attention by length, dequantisation, optimizer, host floor."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from profiles.calibration import KernelKind, TimedKernel
from profiles.gpu import DType
from profiles.probes.job import ProbeJob
from profiles.probes.stopwatch import Stopwatch
from profiles.units import MIB

# (in_features, out_features): projections and heads of common models, small ones for a CPU
CPU_WIDTHS = ((576, 576), (576, 1536), (1024, 3072), (2048, 2048), (576, 49152))
CPU_TOKENS = (32, 128, 512)
CARD_WIDTHS = ((2048, 2048), (4096, 1024), (4096, 4096), (4096, 14336), (14336, 4096), (4096, 128256))
CARD_TOKENS = (256, 1024, 4096, 16384)
CPU_LENGTHS, CARD_LENGTHS = (128, 512, 1024), (512, 2048, 8192)
HEADS, HEAD_DIM = 8, 64
SMALL_TENSORS, SMALL_ELEMENTS = 300, 2048
LAYERS_OF_LAUNCHES = 100


def probe_matmul(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedKernel]:
    """Products of (tokens, n_in) by (n_in, n_out), as the layers make them; the largest first."""
    cpu = job.device == "cpu"
    for dtype_name, dtype in _dtypes(job):
        for n_in, n_out in reversed(CPU_WIDTHS if cpu else CARD_WIDTHS):
            weight = torch.randn(n_out, n_in, device=job.device, dtype=dtype)
            for tokens in reversed(CPU_TOKENS if cpu else CARD_TOKENS):
                if watch.expired:
                    return
                x = torch.randn(tokens, n_in, device=job.device, dtype=dtype)
                call = _linear(x, weight)
                yield _kernel("matmul", dtype_name, watch.seconds(call), tokens=tokens, n_in=n_in, n_out=n_out)


def _linear(x: Any, weight: Any) -> Callable[[], object]:
    return lambda: functional.linear(x, weight)


def probe_copy(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedKernel]:
    """A copy and an addition of tensors far larger than any cache."""
    size = (64 if job.device == "cpu" else 512) * MIB
    dtype_name, dtype = _dtypes(job)[0]
    x = torch.ones(size // dtype.itemsize, device=job.device, dtype=dtype)
    y = torch.ones_like(x)
    yield _kernel("copy", dtype_name, watch.seconds(lambda: y.copy_(x)), n_bytes=2 * size)
    yield _kernel("add", dtype_name, watch.seconds(lambda: torch.add(x, y, out=y)), n_bytes=3 * size)


def probe_attention(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedKernel]:
    """Causal scaled_dot_product_attention, forward pass."""
    cpu = job.device == "cpu"
    dtype_name, dtype = _dtypes(job)[0]
    heads, head_dim = (HEADS, HEAD_DIM) if cpu else (32, 128)
    for length in CPU_LENGTHS if cpu else CARD_LENGTHS:
        if watch.expired:
            return
        q = torch.randn(1, heads, length, head_dim, device=job.device, dtype=dtype)

        def call(q: Any = q) -> object:
            return functional.scaled_dot_product_attention(q, q, q, is_causal=True)

        yield _kernel("attention", dtype_name, watch.seconds(call), length=length, heads=heads, head_dim=head_dim)


def probe_dequantize(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedKernel]:
    """bitsandbytes makes a 4-bit and an 8-bit weight readable. Nothing where it is not installed."""
    try:
        from bitsandbytes import functional as bnb
    except ImportError:
        return
    dtype_name, dtype = _dtypes(job)[0]
    width = 1024 if job.device == "cpu" else 4096
    weight = torch.randn(width, width, device=job.device, dtype=dtype)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4")
    seconds = watch.seconds(lambda: bnb.dequantize_4bit(packed, state))
    yield _kernel("dequantize_nf4", dtype_name, seconds, weights=width * width)
    if job.device == "cuda":
        codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
        seconds = watch.seconds(lambda: bnb.int8_vectorwise_dequant(codes, scales))
        yield _kernel("dequantize_int8", dtype_name, seconds, weights=width * width)


def probe_optimizer(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedKernel]:
    """Fused AdamW over a few large tensors (bytes decide) and over many small ones (the host decides)."""
    large = (4 if job.device == "cpu" else 64) * MIB
    for tensors, elements in ((4, large), (SMALL_TENSORS, SMALL_ELEMENTS)):
        trained = [torch.zeros(elements, device=job.device, requires_grad=True) for _ in range(tensors)]
        for tensor in trained:
            tensor.grad = torch.ones_like(tensor)
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        yield _kernel("optimizer", "fp32", watch.seconds(optimizer.step), tensors=tensors, elements=elements)


def probe_launch(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedKernel]:
    """Forward and backward pass of tiny layers: all of it is Python, dispatch and autograd."""
    layers = torch.nn.Sequential(
        *[torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()) for _ in range(LAYERS_OF_LAUNCHES)]
    ).to(job.device)
    x = torch.randn(1, 8, device=job.device)

    def call() -> None:
        layers.zero_grad()
        layers(x).sum().backward()

    yield _kernel("launch", "fp32", watch.seconds(call), launches=4 * LAYERS_OF_LAUNCHES)


def probe_transfer(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedKernel]:
    """Pinned copies to the card and back. Nothing on a CPU."""
    if job.device == "cpu":
        return
    size = 256 * MIB
    host = torch.ones(size, dtype=torch.uint8).pin_memory()
    card = torch.ones(size, dtype=torch.uint8, device=job.device)
    yield _kernel("to_device", "fp32", watch.seconds(lambda: card.copy_(host, non_blocking=True)), n_bytes=size)
    yield _kernel("to_host", "fp32", watch.seconds(lambda: host.copy_(card, non_blocking=True)), n_bytes=size)


def _dtypes(job: ProbeJob) -> list[tuple[DType, Any]]:
    if job.device == "cpu":
        return [("fp32", torch.float32)]
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return [("bf16", torch.bfloat16)]
    return [("fp16", torch.float16)]


def _kernel(kind: KernelKind, dtype: DType, seconds: float, **shape: int) -> TimedKernel:
    return TimedKernel(kind=kind, dtype=dtype, shape=shape, seconds=seconds)
