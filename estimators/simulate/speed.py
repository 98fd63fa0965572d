"""Simulated tier of speed: every operation of a traced step priced by its own shape, at the analytic tier's rates.

t = accumulation * smoothmax(kernels, host) + clipping + optimizer: `throughput`'s, but what is executed is not counted
by formulas, it is what the traced code called.
"""

from collections import defaultdict
from dataclasses import replace
from math import exp

from estimators.answer import SpeedEstimate, WorkItem
from estimators.efficiency import Rates, elementwise_seconds, flash_share_of_peak, matmul_seconds, rates_of, smooth_max
from estimators.interval import Interval
from estimators.regime import resolve_regime
from estimators.simulate.result import Operation, OperationStage, Simulation
from estimators.throughput import (
    as_card,
    calibrated_constants,
    calibration_name,
    margins,
    matmul_dtype,
    per_second,
    real_tokens,
    utilization,
    why_no_speed,
)
from estimators.work import FP32, Work
from profiles.calibration import Calibration
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan

ENGINE_LAUNCH = 0.5  # of a forward kernel's host time: autograd's engine is C++ (the formulas count a backward walk
# as one forward one, and the engine launches about two kernels for each of a forward pass)


def speed_from_simulation(
    simulation: Simulation,
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    *,
    calibration: Calibration | None = None,
) -> SpeedEstimate | None:
    """Price the operations of `simulation`, whose last step was of the mean padded length.

    None where the formulas have to answer: several cards (collectives are not traced), Unsloth (its kernels are
    modelled, not traced), an unnamed card, or facts that are missing.
    """
    if plan.n_gpus > 1 or plan.platform == "unsloth" or hardware.candidates or why_no_speed(hardware):
        return None
    constants = calibrated_constants(calibration)
    card = as_card(hardware.gpu, constants)
    rates = rates_of(card, matmul_dtype(resolve_regime(plan, model, hardware.gpu), card), constants=constants)
    if rates is None:
        return None
    items = work_items(simulation.operations, rates, accumulation=plan.gradient_accumulation_steps)
    seconds = sum(item.seconds for item in items)
    low, high = margins(plan, hardware, calibration, constants)
    interval = Interval(low=seconds * exp(-low), expected=seconds, high=seconds * exp(high))
    tokens = real_tokens(plan) * plan.gradient_accumulation_steps
    return SpeedEstimate(
        basis="simulated",
        items=items,
        step_seconds=interval,
        tokens_per_second=per_second(tokens, interval),
        tokens_per_step=tokens,
        model_flops_utilization=utilization(plan, model, (hardware.gpu,), tokens, seconds),
        calibration=calibration_name(calibration),
        assumptions=(
            f"{sum(o.n for o in simulation.operations)} kernels of a step priced one by one",
            *(calibration.notes if calibration is not None else ()),
        ),
    )


def work_items(operations: tuple[Operation, ...], rates: Rates, *, accumulation: int) -> tuple[WorkItem, ...]:
    """What the step's time goes to, kind by kind; passes count `accumulation` times."""
    passes = [o for o in operations if o.stage in ("forward", "backward")]
    work: dict[str, Work] = defaultdict(Work)
    for o in passes:
        work[_NAMES.get(o.kind, o.kind)].add(
            flops=o.n * o.flops, n_bytes=o.n * o.n_bytes, seconds=o.n * operation_seconds(o, rates)
        )
    kernels = sum(w.seconds for w in work.values()) * rates.step_time_factor
    launches = sum(o.n * (ENGINE_LAUNCH if o.stage == "backward" else 1.0) for o in passes)
    waiting = smooth_max(kernels, launches * rates.launch, rates.host_norm) - kernels
    items = [
        WorkItem(
            name=name,
            flops=w.flops * accumulation,
            n_bytes=w.n_bytes * accumulation,
            seconds=w.seconds * accumulation * rates.step_time_factor,
            bound="compute" if w.flops / rates.matmul > w.n_bytes / rates.matmul_bandwidth else "memory",
        )
        for name, w in work.items()
    ]
    launched = float(sum(o.n for o in passes) * accumulation)
    items.append(WorkItem(name="host", launches=launched, seconds=waiting * accumulation, bound="host"))
    for stage, name in _ONCE.items():
        found = [o for o in operations if o.stage == stage]
        if found:
            items.append(_once(name, found, rates))
    return tuple(items)


def _once(name: str, operations: list[Operation], rates: Rates) -> WorkItem:
    """Work that happens once a step: by bytes, or as fast as the host walks through the tensors."""
    seconds = sum(o.n * operation_seconds(o, rates) for o in operations) * rates.optimizer
    launches = sum(o.n for o in operations)
    walked = max(o.tensors for o in operations) if name == "optimizer" else 0  # a fused optimizer's lists
    host = launches * rates.launch + walked * rates.launch_per_tensor
    return WorkItem(
        name=name,
        flops=sum(o.n * o.flops for o in operations),
        n_bytes=float(sum(o.n * o.n_bytes for o in operations)),
        launches=float(launches + walked),
        seconds=max(seconds, host),
        bound="host" if host > seconds else "memory",
    )


def operation_seconds(o: Operation, rates: Rates) -> float:
    """Seconds of one call at these rates; see `efficiency` for the curves."""
    half = o.itemsize < FP32
    match o.kind:
        case "matmul" | "int8_matmul":
            if o.tokens * o.n_in * o.n_out == 0:
                return 0.0
            own = rates if half else replace(rates, matmul=rates.matmul_fp32)
            seconds = matmul_seconds(
                own, tokens=o.tokens, n_in=o.n_in, n_out=o.n_out, itemsize=o.itemsize, weights_read=o.copies
            )
            return seconds * (rates.int8 if o.kind == "int8_matmul" else 1.0)
        case "flash" | "efficient":
            best = rates.attention if o.kind == "flash" else rates.attention_efficient
            best *= 1.0 if half else rates.matmul_fp32 / rates.matmul
            return o.flops / (best * flash_share_of_peak(o.tokens)) + o.n_bytes / rates.bandwidth
        case "dequantize":
            return o.n_bytes / rates.dequantize
        case "elementwise":
            return elementwise_seconds(rates, o.n_bytes, tensor_bytes=max(o.tensor_bytes, 1))


_NAMES = {"flash": "attention", "efficient": "attention", "int8_matmul": "matmul"}
_ONCE: dict[OperationStage, str] = {"optimizer": "optimizer", "clip": "gradient clipping"}
