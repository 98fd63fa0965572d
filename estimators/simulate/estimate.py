"""Simulations as estimates: memory, with the interval that published runs leave it (margins.json), and speed."""

from concurrent.futures import ThreadPoolExecutor

from estimators.answer import Estimate, MemoryEstimate, Phase
from estimators.margins import allocated_interval, replayed_interval
from estimators.methods import get_method
from estimators.overhead import device_interval
from estimators.regime import resolve_regime
from estimators.simulate.job import Job
from estimators.simulate.result import Simulation
from estimators.simulate.run import ask
from estimators.simulate.speed import speed_from_simulation
from estimators.throughput import batch_shape
from profiles.calibration import Calibration
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
    method = get_method(plan.method)
    mean = round(batch_shape(plan, method).length - batch_shape(plan.replace(mean_len=None), method).length)
    if mean < 0 and not plan.packing:
        shorter = job.replace(plan=plan.replace(seq_len=plan.seq_len + mean, mean_len=None))
        with ThreadPoolExecutor() as pool:
            longest, usual = pool.map(lambda each: ask(each, seconds), (job, shorter))
    else:
        longest = usual = ask(job, seconds)
    speed = speed_from_simulation(usual, plan, model, hardware, calibration=calibration)
    return Estimate(memory=memory_from_simulation(longest, plan, model, hardware), speed=speed)


def memory_from_simulation(simulation: Simulation, plan: Plan, model: ModelSpec, hardware: Hardware) -> MemoryEstimate:
    """Give the simulated tier's answer the form of the analytic one's; bytes of one card."""
    regime = resolve_regime(plan, model, hardware.gpu)
    allocated = allocated_interval(simulation.peak_allocated, plan, regime, "simulated")
    reserved = replayed_interval(simulation.peak_reserved, allocated, plan, regime, "simulated")
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
