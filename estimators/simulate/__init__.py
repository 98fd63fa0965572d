"""The simulated tier: the real training step on fake tensors, replayed through the caching allocator.

Nothing here imports torch until a job runs in its child process.
"""

from estimators.simulate.estimate import estimate_simulated, memory_from_simulation
from estimators.simulate.plot import plot_timeline
from estimators.simulate.result import Moment, PhasePeak, Simulation
from estimators.simulate.run import simulate

__all__ = [
    "Moment",
    "PhasePeak",
    "Simulation",
    "estimate_simulated",
    "memory_from_simulation",
    "plot_timeline",
    "simulate",
]
