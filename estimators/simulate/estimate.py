"""Simulations as estimates: memory, with the interval that published runs leave it (margins.json), and speed."""

from estimators.answer import Estimate, MemoryEstimate, Phase
from estimators.interval import Interval
from estimators.methods import get_method
from estimators.overhead import device_interval
from estimators.simulate.job import Job
from estimators.simulate.result import Simulation
from estimators.simulate.run import run_child
from estimators.simulate.speed import speed_from_simulation
from estimators.throughput import batch_shape
from profiles.calibration import Calibration
from profiles.catalog import get_margin
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan


def estimate_simulated(
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    *,
    calibration: Calibration | None = None,
    seconds: float = 60,
) -> Estimate:
    """Memory by the longest batch, speed by one of mean length. `speed` is None where the formulas have to answer.

    seconds: limit of each of the (one or two) simulations. Raises as `simulate` does.
    """
    job = Job(plan=plan, model=model, hardware=hardware)
    longest = run_child(job, seconds)
    method = get_method(plan.method)
    mean = round(batch_shape(plan, method).length - batch_shape(plan.replace(mean_len=None), method).length)
    usual = longest
    if mean < 0 and not plan.packing:
        usual = run_child(job.replace(plan=plan.replace(seq_len=plan.seq_len + mean, mean_len=None)), seconds)
    speed = speed_from_simulation(usual, plan, model, hardware, calibration=calibration)
    return Estimate(memory=memory_from_simulation(longest, hardware), speed=speed)


def memory_from_simulation(simulation: Simulation, hardware: Hardware) -> MemoryEstimate:
    """Give the simulated tier's answer the form of the analytic one's; bytes of one card."""
    several = hardware.n_gpus > 1  # no published run checks those: they get the formulas' interval
    allocated = _interval(simulation.peak_allocated, "allocated", "sharded" if several else "simulated")
    margin_of = "allocated" if several else "reserved"
    reserved = _interval(simulation.peak_reserved, margin_of, "sharded" if several else "simulated")
    traced, layers = simulation.layers_traced, simulation.layers
    versions = ", ".join(f"{name} {version}" for name, version in simulation.versions.items())
    return MemoryEstimate(
        basis="simulated",
        phases=tuple(Phase(name=p.name, components=p.components) for p in simulation.phases),
        peak_phase=simulation.peak.name,
        allocated=allocated,
        reserved=reserved,
        device=device_interval(reserved, hardware.gpu),
        budget=float(hardware.gpu.memory_bytes),
        trainable_parameters=simulation.trainable_parameters,
        assumptions=(
            f"simulated with {versions}",
            f"{traced} of {layers} equal layers traced" if traced < layers else f"all {layers} layers traced",
            *simulation.assumptions,
        ),
    )


def _interval(n_bytes: int, quantity: str, case: str) -> Interval:
    margin = get_margin(quantity, case)
    return Interval(low=n_bytes * (1 + margin.low), expected=float(n_bytes), high=n_bytes * (1 + margin.high))
