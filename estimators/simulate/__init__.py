"""The simulated tier: the real training step on fake tensors, replayed through the caching allocator.

Nothing here imports torch until a job runs in its child process. `estimate` gives a simulation the form of every other
estimate, `plot` draws it; the child needs neither.
"""

from estimators.simulate.result import Moment, PhasePeak, Simulation
from estimators.simulate.run import simulate

__all__ = ["Moment", "PhasePeak", "Simulation", "simulate"]
