"""A Simulation as a MemoryEstimate, with the interval that published runs leave it (profiles/data/margins.json)."""

from estimators.answer import MemoryEstimate, Phase
from estimators.interval import Interval
from estimators.overhead import device_interval
from estimators.simulate.result import Simulation
from profiles.catalog import get_margin
from profiles.gpu import Hardware


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
