"""Seconds of a single kernel as the speed model sees it: what a probe's timing is compared with."""

from collections.abc import Mapping

from estimators.communication import collective_seconds
from estimators.efficiency import Rates, flash_share_of_peak, matmul_seconds, rates_of
from estimators.flops import FLOPS_PER_WEIGHT
from estimators.step_time import (
    DEQUANTIZED_BYTES,
    NF4_BYTES,
    SCORE_BYTES,
    STATE_TRAFFIC,
)
from estimators.throughput import as_card
from estimators.work import FP32
from profiles.calibration import TimedKernel
from profiles.gpu import GpuSpec
from profiles.scheme import DTYPE_BYTES

# bitsandbytes 0.50 int8_vectorwise_dequant (_ops.py): codes times scales to fp32, then times 1/127
INT8_VECTORWISE_BYTES = 1 + 3 * FP32
ADAMW_BYTES = 3 * FP32 + STATE_TRAFFIC * 2 * FP32  # an fp32 element: weight in and out, gradient in, two states


def kernel_seconds(kernel: TimedKernel, gpu: GpuSpec, constants: Mapping[str, float]) -> float | None:
    """Expected seconds of one call with these constants; None where the card's rates are not known.

    On a CPU `elementwise` is mostly the price of fresh memory in training; a probe's tensors are there already.
    """
    card = as_card(gpu, constants)
    rates = rates_of(card, kernel.dtype, constants=constants)
    if rates is None:
        return None
    shape, on_cpu = kernel.shape, gpu.vendor == "CPU"
    resident = card.bandwidth if on_cpu and card.bandwidth else rates.bandwidth
    match kernel.kind:
        case "matmul":
            itemsize = DTYPE_BYTES[kernel.dtype]
            return matmul_seconds(
                rates, tokens=shape["tokens"], n_in=shape["n_in"], n_out=shape["n_out"], itemsize=itemsize
            )
        case "copy" | "add":
            return shape["n_bytes"] / resident
        case "attention":
            return _attention(shape, rates, on_cpu=on_cpu)
        case "dequantize_nf4":
            return shape["weights"] * (NF4_BYTES + DEQUANTIZED_BYTES) / rates.dequantize
        case "dequantize_int8":
            return shape["weights"] * INT8_VECTORWISE_BYTES / rates.dequantize
        case "optimizer":
            tensors, elements = shape["tensors"], shape["elements"]
            return max(tensors * elements * ADAMW_BYTES / resident, tensors * rates.launch_per_tensor)
        case "launch":
            return shape["launches"] * rates.launch
        case "to_device" | "to_host":
            return shape["n_bytes"] / rates.host_link
        case "all_reduce" | "all_gather" | "reduce_scatter":
            return collective_seconds(
                kernel.kind, n_bytes=shape["n_bytes"], n_gpus=shape["n_gpus"], bandwidth=rates.link,
                latency=rates.link_latency,
            )  # fmt: skip


def _attention(shape: Mapping[str, int], rates: Rates, *, on_cpu: bool) -> float:
    """A causal forward pass over one sequence, fp32 on a CPU and half precision on a card (flash)."""
    length, heads = shape["length"], shape["heads"]
    flops = 2 * FLOPS_PER_WEIGHT * length * length * heads * shape["head_dim"]
    if on_cpu:
        n_bytes = length * length * heads * SCORE_BYTES[FP32]
        return (flops / rates.matmul_fp32 + n_bytes / rates.bandwidth) * rates.attention_math
    return flops / 2 / (rates.attention * flash_share_of_peak(length))
