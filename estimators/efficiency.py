"""Rates: what a card really reaches, by kind of work and size. The curves of the speed model and their constants."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil

from profiles.efficiency import load_efficiencies
from profiles.gpu import DType, GpuSpec
from profiles.units import GB, MIB, flops_from_tflops

# The shapes of the curves; their sizes are data (profiles/data/efficiency.json).
ROOFLINE_NORM = 1.5  # p-norm of compute and memory time: fits Vidur's A100, H100 and A40 GEMM profiles (below)
TILE = 128  # rows and columns of a thread block's output tile in cuBLAS and CUTLASS half-precision kernels
STEP_NORM = 4.0  # p-norm of GPU and host time: they overlap, and the slower one nearly decides (on a CPU they add up)


@dataclass(frozen=True, slots=True)
class Rates:
    """A card's rates in SI units. The fields that a calibration may replace have the names of efficiency.json's rows.

    matmul: best matmul rate at large sizes, FLOP/s; matmul_fp32: the same in fp32; bandwidth: of elementwise kernels,
    bytes/s; launch: host seconds of a forward kernel; link: bus bandwidth between cards, bytes/s; host_link: card to
    main memory, bytes/s. attention_math, loss, head, optimizer: their time over what
    FLOPs and bytes say; only calibrations have these, and `matmul_bandwidth`, its share of the memory's bandwidth.
    """

    matmul: float
    matmul_fp32: float
    matmul_bandwidth: float
    bandwidth: float
    attention: float
    attention_efficient: float
    dequantize: float
    launch: float
    launch_per_tensor: float
    link: float
    link_latency: float
    host_link: float
    tile_loss: float
    depth_loss: float
    sm_count: int
    l2_bytes: float
    l2_gain: float
    overlap: float
    sharded_layer: float
    experts: float
    adapters: float
    int8: float
    attention_math: float
    loss: float
    head: float
    optimizer: float
    host_norm: float
    step_time_factor: float


@cache
def default_constants() -> Mapping[str, float]:
    """Id -> value of every row that holds for all cards."""
    return {row.id: row.value for row in load_efficiencies().values() if not row.gpus}


@cache
def _card_tflops() -> Mapping[str, float]:
    rows = (row for row in load_efficiencies().values() if row.id.startswith("matmul_tflops."))
    return {gpu: row.value for row in rows for gpu in row.gpus}


def best_matmul_flops(gpu: GpuSpec, dtype: DType, constants: Mapping[str, float]) -> float | None:
    """The best matmul rate in `dtype`, FLOP/s: as measured where someone did, else a share of the dense peak."""
    peak = gpu.peak_flops(dtype)
    if peak is None:
        return None
    if dtype in ("bf16", "fp16"):
        measured = _card_tflops().get(gpu.id, gpu.achieved_bf16_tflops)
        if measured is not None:
            return flops_from_tflops(measured)
    return peak * constants["matmul_of_peak_geforce" if "GeForce" in gpu.name else "matmul_of_peak"]


def rates_of(gpu: GpuSpec, dtype: DType, *, constants: Mapping[str, float] | None = None) -> Rates | None:
    """The card's rates for matmuls in `dtype`, or None where its peak or bandwidth is not known."""
    c = dict(constants or default_constants())
    best = best_matmul_flops(gpu, dtype, c)
    if best is None or gpu.bandwidth is None:
        return None
    matmul = best * c["matmul"]
    major = (gpu.compute_capability or (8, 0))[0]
    flash = c["attention_hopper"] if major >= 9 else c["attention"]
    fp32 = gpu.peak_flops("fp32")
    return Rates(
        matmul=matmul,
        matmul_fp32=matmul / FP32_SLOWDOWN if fp32 is None else fp32 * c["matmul_of_peak"],
        matmul_bandwidth=gpu.bandwidth * c.get("matmul_bandwidth", 1.0),
        bandwidth=gpu.bandwidth * c["elementwise"],
        attention=best * flash,
        attention_efficient=best * c["attention_efficient"],
        dequantize=gpu.bandwidth * c["dequantize"],
        launch=c["launch_seconds"],
        launch_per_tensor=c["tensor_seconds"],
        link=_link_bandwidth(gpu, c),
        link_latency=c["link_latency"],
        host_link=_pcie_bandwidth(gpu.pcie) * c["pcie_share"],
        tile_loss=c["tile_loss"],
        depth_loss=c["depth_loss"],
        sm_count=gpu.sm_count or DEFAULT_SM_COUNT,
        l2_bytes=(gpu.l2_mb or 0.0) * MIB,
        l2_gain=c["l2_gain"],
        overlap=c["communication_overlap"],
        sharded_layer=c["sharded_layer_seconds"],
        experts=c["experts"],
        adapters=c["adapters"],
        int8=c["int8_matmul"],
        attention_math=c.get("attention_math", 1.0),
        loss=c.get("loss", 1.0),
        head=c.get("head", 1.0),
        optimizer=c.get("optimizer", 1.0),
        host_norm=1.0 if gpu.vendor == "CPU" else STEP_NORM,
        step_time_factor=c.get("step_time_factor", 1.0),
    )


# NVLink through a bridge between two cards, which most servers go without (NVIDIA's PCIe boards and GeForce)
OPTIONAL_BRIDGE = frozenset(
    {"rtx2080ti", "rtx3090", "a5000", "a6000", "a30", "a40", "a100-40-pcie", "a100-80-pcie", "h100-pcie", "h100-nvl"}
)
FP32_SLOWDOWN = 8  # half-precision tensor cores against plain fp32, where a card's fp32 peak is not known
DEFAULT_SM_COUNT = 108  # A100's: only the small-matrix loss depends on it
# One direction of x16, after encoding: PCI-SIG's 8, 16 and 32 GT/s with 128b/130b
PCIE_X16 = {"3.0": 15.75 * GB, "4.0": 31.5 * GB, "5.0": 63.0 * GB}


def _pcie_bandwidth(pcie: str) -> float:
    """Bytes/s in one direction of '4.0 x16'; an unknown link counts as 4.0 x16."""
    generation, _, lanes = pcie.partition(" x")
    full = PCIE_X16.get(generation, PCIE_X16["4.0"])
    return full * int(lanes) / 16 if lanes.isdigit() else full


def _link_bandwidth(gpu: GpuSpec, c: Mapping[str, float]) -> float:
    """Bus bandwidth of collectives: a share of NVLink's one direction where it is part of the board, else of PCIe."""
    if gpu.link_gbps is not None and gpu.id not in OPTIONAL_BRIDGE:
        return gpu.link_gbps * GB / 2 * c["nvlink_share"]
    return _pcie_bandwidth(gpu.pcie) * c["pcie_share_pair"]


def matmul_seconds(
    rates: Rates, *, tokens: float, n_in: int, n_out: int, itemsize: int, weights_read: int = 1
) -> float:
    """One GEMM of (tokens, n_in) by (n_in, n_out).

    t = ((compute)^p + (memory)^p)^(1/p); compute = 2 tokens n_in n_out / rate, lengthened by what is lost to the
    last wave of tiles (tile_loss SMs / tiles) and to short inner products (depth_loss / n_in); memory = weights, input
    and output over the bandwidth. Against Vidur's profiles of 7-8B shapes with p = 1.5: A100 16 tokens 10 % of peak
    (measured 8), 64 33 (30), 128 49 (47), 256 61 (66), 2048 70 (70); H100 64 20 (16), 512 64 (64), 1024 71 (74).
    `weights_read`: copies whose weights are read (experts), each meeting `tokens` / weights_read.
    """
    rows = max(tokens / weights_read, 1.0)
    tiles = ceil(rows / TILE) * ceil(n_out / TILE) * weights_read
    loss = 1 + rates.tile_loss * rates.sm_count / tiles + rates.depth_loss / n_in
    compute = 2 * tokens * n_in * n_out / rates.matmul * loss
    n_bytes = itemsize * (weights_read * n_in * n_out + tokens * (n_in + n_out))
    memory = n_bytes / rates.matmul_bandwidth
    return float((compute**ROOFLINE_NORM + memory**ROOFLINE_NORM) ** (1 / ROOFLINE_NORM))


def elementwise_seconds(rates: Rates, n_bytes: float, *, tensor_bytes: float) -> float:
    """Kernels that move `n_bytes` in tensors of `tensor_bytes`: faster where a tensor stays in the L2 cache.

    t = bytes / (bandwidth (1 + gain min(1, L2 / (2 tensor)))); a kernel's input and output both want to stay.
    """
    kept = min(1.0, rates.l2_bytes / (2 * tensor_bytes))
    return n_bytes / (rates.bandwidth * (1 + rates.l2_gain * kept))


def smooth_max(a: float, b: float, norm: float = STEP_NORM) -> float:
    """(a^p + b^p)^(1/p): the larger of two overlapping times, a little more where they are alike."""
    return float((a**norm + b**norm) ** (1 / norm))


def flash_share_of_peak(length: float) -> float:
    """How much of its best rate flash attention reaches at a sequence of `length` tokens.

    s / (s + 512): FlashAttention-2 on H100, causal, head_dim 128, forward 191 TFLOP/s at 512 and 335 at 16k (that
    is 0.57 of the long-sequence rate at 512; FlashAttention-3 paper, arXiv 2407.08608, figure 5).
    """
    return length / (length + 512)
