"""Speed of a plan: seconds of an optimizer step, tokens a second, and what the time goes to.

t = accumulation * smoothmax(gpu, host) + exposed communication + optimizer. Work items stand in `step_time`, rates in
`efficiency`; here they are put together and given an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from estimators.answer import SpeedEstimate, WorkItem
from estimators.efficiency import Rates, default_constants, rates_of, smooth_max
from estimators.flops import model_flops_per_token
from estimators.generation import generation_seconds
from estimators.interval import Interval
from estimators.methods import Method, get_method
from estimators.regime import Regime, resolve_regime
from estimators.step_time import (
    communication_seconds,
    micro_batch,
    offload_seconds,
    optimizer_items,
    overlapped,
)
from estimators.tasks import completion_tokens, sequences
from estimators.work import Batch, MicroBatch
from profiles.catalog import find_gpu, get_optimizer
from profiles.dataset import LengthDistribution
from profiles.gpu import DType, GpuSpec, Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan

if TYPE_CHECKING:
    from profiles.calibration import Calibration

SPREAD = 0.6  # standard deviation over mean of example lengths where the data is not known
SAMPLING_MARGIN = 0.9  # margin of the logarithm of GRPO's step, 90 %: no published run was found to check its sampling
CPU_CORES = 4  # where the record does not say
GATHERING = ("fsdp2", "zero3")  # hooks around every layer gather and free its weights
TIME_FACTOR = "step_time_factor"


@dataclass(frozen=True, slots=True)
class Step:
    """Expected seconds of an optimizer step and its parts, for one card's rates."""

    seconds: float
    items: tuple[WorkItem, ...]
    computed_tokens: float  # a micro-batch, one card
    real_tokens: float  # an optimizer step, all cards


def why_no_speed(hardware: Hardware) -> str:
    """Why `estimate_speed` gives None; empty where it gives a figure."""
    gpu = hardware.gpu
    if gpu.vendor == "CPU" or candidate_cards(hardware):
        return ""
    if gpu.bandwidth is None:
        return f"the memory bandwidth of {gpu.name} is not known"
    if not _has_rate(gpu):
        return f"the half-precision matmul rate of {gpu.name} is not known"
    return ""


def estimate_speed(
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    *,
    calibration: Calibration | None = None,
    lengths: LengthDistribution | None = None,
) -> SpeedEstimate | None:
    """Estimate the speed of `plan` (analytic tier). None where facts are missing: `why_no_speed` says which.

    `lengths` replaces the plan's `mean_len` and the guess about padding by the data's own distribution. An unnamed
    card is computed as each of its `candidates`, and the interval spans them.

    Raises:
        UnknownNameError: the plan's method or optimizer does not exist.
    """
    if why_no_speed(hardware):
        return None
    constants = calibrated_constants(calibration)
    cards = candidate_cards(hardware) or (hardware.gpu,)
    steps = [s for s in (step_on(plan, model, gpu, constants, lengths) for gpu in cards) if s is not None]
    if not steps:
        return None
    steps.sort(key=lambda s: s.seconds)
    middle = steps[len(steps) // 2]
    low, high = margins(plan, hardware, calibration, constants)
    seconds = Interval(low=steps[0].seconds * exp(-low), expected=middle.seconds, high=steps[-1].seconds * exp(high))
    return SpeedEstimate(
        basis="analytic",
        items=middle.items,
        step_seconds=seconds,
        tokens_per_second=per_second(middle.real_tokens, seconds),
        tokens_per_step=middle.real_tokens,
        model_flops_utilization=utilization(plan, model, cards, middle.real_tokens, middle.seconds),
        calibration=calibration_name(calibration),
        assumptions=_assumptions(plan, hardware, middle, cards, calibration),
    )


def per_second(tokens: float, seconds: Interval) -> Interval:
    """Rate of `tokens` that take `seconds`."""
    return Interval(low=tokens / seconds.high, expected=tokens / seconds.expected, high=tokens / seconds.low)


def calibrated_constants(calibration: Calibration | None) -> Mapping[str, float]:
    """The defaults, with the calibration's constants in place of those of the same name."""
    if calibration is None:
        return default_constants()
    return {**default_constants(), **{name: fitted.value for name, fitted in calibration.constants.items()}}


def step_on(
    plan: Plan,
    model: ModelSpec,
    gpu: GpuSpec,
    constants: Mapping[str, float],
    lengths: LengthDistribution | None = None,
) -> Step | None:
    """The expected step on one kind of card (or a CPU) with these constants; None where its rates are not known."""
    method, regime = get_method(plan.method), resolve_regime(plan, model, gpu)
    card = as_card(gpu, constants)
    rates = rates_of(card, matmul_dtype(regime, card), constants=constants)
    return None if rates is None else expected_step(plan, model, method, regime, rates, lengths=lengths)


def matmul_dtype(regime: Regime, gpu: GpuSpec) -> DType:
    """The catalogue's name of the rate that matmuls run at: half precision as computed, else plain fp32."""
    if regime.compute == 4:
        return "fp32"
    return regime.compute_dtype if regime.compute_dtype in gpu.peak_dense_tflops else "fp16"


def expected_step(
    plan: Plan,
    model: ModelSpec,
    method: Method,
    regime: Regime,
    rates: Rates,
    *,
    lengths: LengthDistribution | None = None,
) -> Step:
    """Seconds of one optimizer step at `rates`, item by item."""
    batch = batch_shape(plan, method, lengths)
    n = plan.gradient_accumulation_steps
    micro = micro_batch(plan, model, method, regime, rates, batch)
    gpu, busy = busy_seconds(plan, micro, rates)
    per_micro, per_step, traffic = communication_seconds(plan, model, method, regime, rates)
    offload, offloaded = offload_seconds(plan, model, regime, rates, batch)
    exposed = overlapped(busy, per_micro, rates.overlap)
    unloading = overlapped(busy, offload, rates.overlap)
    items = [
        WorkItem(
            name=name,
            flops=w.flops * n,
            n_bytes=w.n_bytes * n,
            seconds=w.seconds * n * rates.step_time_factor,
            bound="compute" if w.flops / rates.matmul > w.n_bytes / rates.matmul_bandwidth else "memory",
        )
        for name, w in micro.work.items()
    ]
    items.append(WorkItem(name="host", launches=micro.launches * n, seconds=(busy - gpu) * n, bound="host"))
    if traffic:
        items.append(WorkItem(name="communication", n_bytes=traffic, seconds=exposed * n + per_step, bound="link"))
    if offloaded:
        items.append(WorkItem(name="offload", n_bytes=offloaded * n, seconds=unloading * n, bound="link"))
    if plan.task == "grpo":
        seconds = generation_seconds(plan, model, method, regime, rates, sequences=plan.micro_batch_size * n)
        items.append(WorkItem(name="sampling", seconds=seconds, bound="memory"))
    items += optimizer_items(plan, model, method, regime, rates, get_optimizer(plan.optimizer))
    return Step(
        seconds=sum(item.seconds for item in items),
        items=tuple(items),
        computed_tokens=batch.tokens,
        real_tokens=real_tokens(plan, lengths) * n * plan.n_gpus,
    )


def busy_seconds(plan: Plan, micro: MicroBatch, rates: Rates) -> tuple[float, float]:
    """Seconds of a micro-batch: the GPU's own, and with what the host adds where it cannot keep up."""
    gpu = micro.seconds * rates.step_time_factor
    host = micro.launches * rates.launch
    if plan.sharding in GATHERING:
        host += micro.layer_passes * rates.sharded_layer
    return gpu, smooth_max(gpu, host, rates.host_norm)


def batch_shape(plan: Plan, method: Method, lengths: LengthDistribution | None = None) -> Batch:
    """What a micro-batch computes: padded to its longest sequence, or rows filled to seq_len by packing."""
    rows = sequences(plan)
    virtual = plan.num_virtual_tokens if method.adds_tokens else 0
    if plan.packing:
        mean = lengths.mean_len(plan.seq_len) if lengths else plan.mean_len
        return Batch(sequences=rows, length=plan.seq_len, attended=min(mean or plan.seq_len, plan.seq_len))
    length = padded_length(plan, rows, lengths) + virtual
    keys = plan.num_virtual_tokens if method.adds_keys else 0
    return Batch(sequences=rows, length=length, attended=length, extra_keys=keys)


def padded_length(plan: Plan, sequences: int, lengths: LengthDistribution | None = None) -> float:
    """Mean length of the longest of `sequences` examples, at most seq_len: what a batch is padded to.

    Without the data's distribution: mean (1 + SPREAD (H_n - 1)), H_n the n-th harmonic number, which is exact for
    exponentially distributed lengths with SPREAD 1. Without a mean length: seq_len.
    """
    if lengths is not None:
        return lengths.padded_mean(plan.seq_len, sequences)
    if plan.mean_len is None:
        return float(plan.seq_len)
    harmonic = sum(1 / i for i in range(1, min(sequences, 1000) + 1))
    return min(plan.seq_len, plan.mean_len * (1 + SPREAD * (harmonic - 1)))


def real_tokens(plan: Plan, lengths: LengthDistribution | None = None) -> float:
    """Real tokens of a micro-batch on one card: padding and virtual tokens left out."""
    rows = sequences(plan)
    if plan.packing:
        filled = lengths.packing_efficiency(plan.seq_len) if lengths else 1.0
        return rows * plan.seq_len * filled
    mean = lengths.mean_len(plan.seq_len) if lengths else plan.mean_len
    return rows * min(mean or plan.seq_len, plan.seq_len)


def candidate_cards(hardware: Hardware) -> tuple[GpuSpec, ...]:
    """The catalogue's cards that an unnamed one may be, as far as their rates are known."""
    cards = (find_gpu(name) for name in hardware.candidates)
    return tuple(c for c in cards if c.bandwidth is not None and _has_rate(c))


def _has_rate(gpu: GpuSpec) -> bool:
    return bool(gpu.peak_dense_tflops.keys() & {"bf16", "fp16"})


def as_card(cpu: GpuSpec, constants: Mapping[str, float]) -> GpuSpec:
    """A CPU as a slow card: a rate a core, and the bandwidth of a desktop or as calibrated. Cards stay as they are."""
    if cpu.vendor != "CPU":
        return cpu
    cores = cpu.sm_count or CPU_CORES
    tflops = constants["cpu_tflops_per_core"] * cores
    return cpu.replace(
        peak_dense_tflops=cpu.peak_dense_tflops or {"fp32": tflops, "bf16": tflops / 2, "fp16": tflops / 2},
        memory_bandwidth_gbps=cpu.memory_bandwidth_gbps or constants["cpu_bandwidth_gbps"],
        sm_count=cores,
    )


def margins(
    plan: Plan, hardware: Hardware, calibration: Calibration | None, constants: Mapping[str, float]
) -> tuple[float, float]:
    """Margins of the logarithm below and above, for 90 %: those of the leave-one-source-out errors, or the residual."""
    more = SAMPLING_MARGIN if plan.task == "grpo" else 0.0
    if calibration is not None and TIME_FACTOR in calibration.constants:
        residual = calibration.constants[TIME_FACTOR].residual + more
        return residual, residual
    if hardware.gpu.vendor == "CPU":
        return constants["cpu_margin"] + more, constants["cpu_margin"] + more
    more += constants["int8_margin"] if plan.quantization == "int8" else 0.0
    return constants["margin_below"] + more, constants["margin_above"] + more


def calibration_name(calibration: Calibration | None) -> str:
    """How the rates were found, in words."""
    if calibration is None or not calibration.constants:
        return "uncalibrated"
    where = f"{calibration.environment.hardware}, {calibration.date}"
    steps = calibration.constants.get(TIME_FACTOR)
    if steps is None:
        return f"rates calibrated on {where}, steps not"
    return f"calibrated on {where}, n={steps.n}, +-{steps.residual:.0%}"


def utilization(plan: Plan, model: ModelSpec, cards: Sequence[GpuSpec], tokens: float, seconds: float) -> float | None:
    """Model FLOPs of a step's `tokens` over the card's dense half-precision peak; None where several are meant."""
    peak = cards[0].peak_flops("bf16") or cards[0].peak_flops("fp16")
    if len(cards) > 1 or peak is None:
        return None
    per_token = model_flops_per_token(model, get_method(plan.method), plan.mean_len or plan.seq_len)
    return per_token * tokens / plan.n_gpus / seconds / peak


def _assumptions(
    plan: Plan, hardware: Hardware, step: Step, cards: Sequence[GpuSpec], calibration: Calibration | None
) -> tuple[str, ...]:
    notes = list(calibration.notes) if calibration is not None else []
    if len(cards) > 1:
        names = ", ".join(sorted(c.name for c in cards))
        notes.append(f"the card is not named: the interval spans {names}")
    if hardware.gpu.vendor == "CPU" and calibration is None:
        notes.append("a CPU's speed is a rough guess from its cores; `ftadvise calibrate --device cpu` measures it")
    padding = 1 - step.real_tokens / (step.computed_tokens * plan.gradient_accumulation_steps * plan.n_gpus)
    if plan.task == "grpo":
        new = completion_tokens(plan)
        notes.append(f"sampling by transformers' generate, each completion {new} tokens long; not checked against runs")
    if plan.mean_len is None and not plan.packing:
        notes.append(f"every sequence is taken to be {plan.seq_len} tokens long")
    elif padding > 0.02:
        notes.append(f"{padding:.0%} of the computed tokens are padding or virtual tokens")
    return tuple(notes)
