"""APOLLO: Adam's states of a random projection of the gradient, which only scale it (Zhu et al., arXiv 2412.05270).

apollo_torch 1.0.3: apollo.py, random_projector.py. The update is the gradient itself, scaled by channel.
"""

from estimators.methods.base import TrainedTensors
from estimators.methods.projected import Projected
from estimators.optimizer_states import FP32_BYTES


class Apollo(Projected):
    """Full fine-tuning with projected states."""

    id = "apollo"
    title = "APOLLO"

    def projection_bytes(self, t: TrainedTensors, itemsize: int) -> float:
        """An fp32 copy of a 16-bit gradient, made for its dtype and shape alone; then the scaled gradient, made beside
        the last one's."""
        copy = FP32_BYTES if itemsize < FP32_BYTES else 0
        return float(t.elements * max(copy, itemsize))


METHOD = Apollo()
