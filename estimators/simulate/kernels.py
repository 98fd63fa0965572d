"""What CUDA's kernels do that PyTorch's dispatcher does not show: which attention kernel runs, and scratch memory.

Each entry names the source file whose host code makes the choice or the allocation (PyTorch v2.13).
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from estimators.embedding import embedding_sums
from estimators.regime import FLASH_MAX_HEAD_DIM, FLASH_MIN_CAPABILITY
from estimators.vector_sum import vector_sum

BF16_MIN_CAPABILITY = (8, 0)
GEMM_4BIT_MAX_ROWS = 512  # bitsandbytes 0.50: beyond it gemm_4bit dequantises the weight and calls a plain matmul
MATMULS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv"})


def attention_kernel(
    *,
    capability: tuple[int, int],
    half: bool,
    bf16: bool,
    masked: bool,
    heads: int,
    kv_heads: int,
    gqa: bool,
    dims: tuple[int, int],
) -> str:
    """The kernel that scaled_dot_product_attention takes: "flash", "efficient" or "math" (sdp_utils.cpp).

    dims: head_dim of queries and of values. gqa: the call allows key heads to be fewer (enable_gqa; Falcon's does not).
    Flash: half precision, no mask, compute capability 8.0, head_dim to 256. Efficient: equal numbers of heads; bf16
    from 8.0.
    """
    if (
        half
        and not masked
        and (gqa or heads == kv_heads)
        and capability >= FLASH_MIN_CAPABILITY
        and dims[0] == dims[1]
        and dims[0] <= FLASH_MAX_HEAD_DIM
    ):
        return "flash"
    if heads == kv_heads and (capability >= BF16_MIN_CAPABILITY or not bf16):
        return "efficient"
    return "math"


def scratch(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], threads: int = 0) -> tuple[int, ...]:
    """Bytes of each buffer that operation `name` makes and frees inside, in order. threads: resident on the card."""
    if name == "aten::sum":
        return _sum(args, threads)
    rule = _RULES.get(name)
    return rule(args, kwargs) if rule is not None else ()


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _flash_backward(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """flash_attn/flash_api.cpp mha_bwd: softmax_d and dq_accum in fp32; dk and dv per query head under GQA."""
    q, k = args[1], args[2]
    batch, heads, length, head_dim = q.shape
    rows = _up(length, 128)
    width = _up(head_dim, 32) if head_dim <= 128 else _up(head_dim, 64)
    buffers = (4 * batch * heads * rows, 4 * batch * heads * rows * width)
    if k.shape[1] == heads:
        return buffers
    expanded = q.dtype.itemsize * batch * k.shape[2] * heads * head_dim
    return (*buffers, expanded, expanded)


def _efficient_backward(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """attention_backward.cu: delta, and the kernel's fp32 accumulator of grad_q in half precision."""
    q = args[1]
    batch, heads, length, head_dim = q.shape
    delta = 4 * batch * heads * length
    if q.dtype.itemsize == 4:
        return (delta,)
    blocks = -(-length // 64) * -(-head_dim // 128)
    return (delta, batch * heads * blocks * (64 * 128 * 4 + 128))


def _softmax_backward(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """cuda/SoftMax.cu softmax_backward_cuda_out: tmp = grad * output."""
    grad, output = args[0], args[1]
    return (grad.numel() * max(grad.dtype.itemsize, output.dtype.itemsize),)


def _gemm_4bit(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """bitsandbytes backends/cuda/ops.py: many rows run on a dequantised copy of the weight (and of its absmax)."""
    x, shape, blocksize = args[0], args[2], args[4]
    if x.numel() // x.shape[-1] <= GEMM_4BIT_MAX_ROWS:
        return ()
    elements = shape[0] * shape[1]
    weight = x.dtype.itemsize * elements
    return (4 * (elements // blocksize), weight) if kwargs.get("absmax_8bit") is not None else (weight,)


def _foreach_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """cuda/ForeachReduceOp.cu: one fp32 partial result a tensor and chunk, 320 chunks at most."""
    tensors = args[0]
    chunks = max((-(-t.numel() // 65536) for t in tensors), default=0)
    return (4 * len(tensors) * chunks,)


def _safe_softmax(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """transformers/attention.cpp _safe_softmax: isneginf of the scores, a byte each, beside the result."""
    return (args[0].numel(),)


def _svd(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """cuda/linalg/BatchLinearAlgebraLib.cpp: a column-major copy that is destroyed; cuSOLVER's workspace is unknown."""
    return (args[0].numel() * args[0].dtype.itemsize,)


def _embedding_backward(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    grad, indices, rows = args[0], args[1], args[2]
    return (embedding_sums(indices.numel(), rows, grad.shape[-1]),)


def _int8_quantize(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """bitsandbytes backends/cuda/ops.py int8_vectorwise_quant: |x|, and a mask of outliers."""
    x, threshold = args[0], args[1] if len(args) > 1 else kwargs.get("threshold", 0.0)
    return (x.numel() * x.dtype.itemsize, x.numel()) if threshold > 0.0 else ()


def _sum(args: Sequence[Any], threads: int) -> tuple[int, ...]:
    """cuda/Reduce.cuh: partial sums over the leading dimensions; over others few values come out of many threads."""
    x, dims = args[0], args[1] if len(args) > 1 else ()
    reduced = {d % x.dim() for d in dims or () if x.dim()}
    count = len(reduced)
    if not 0 < count < x.dim() or reduced != set(range(count)) or not x.is_cuda or not x.is_contiguous():
        return ()
    found = vector_sum(prod(x.shape[:count]), prod(x.shape[count:]), threads)
    return (found,) if found else ()


_RULES = {
    "aten::_linalg_svd": _svd,
    "aten::embedding_dense_backward": _embedding_backward,
    "bitsandbytes::int8_vectorwise_quant": _int8_quantize,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "aten::_safe_softmax": _safe_softmax,
    "aten::_softmax_backward_data": _softmax_backward,
    "bitsandbytes::gemm_4bit": _gemm_4bit,
    "aten::_foreach_norm": _foreach_norm,
}
SCRATCH_FIRST = frozenset({"bitsandbytes::gemm_4bit"})  # everything else makes its outputs before its scratch
