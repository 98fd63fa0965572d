"""GaLore: Adam's states of the gradient's projection on its singular vectors (Zhao et al. 2024, arXiv 2403.03507).

galore_torch 1.0: adamw.py, galore_projector.py. Every 200 steps, and in the first, each gradient is decomposed.
"""

from estimators.methods.base import TrainedTensors
from estimators.methods.projected import Projected, svd_bytes
from estimators.optimizer_states import FP32_BYTES


class Galore(Projected):
    """Full fine-tuning with projected states."""

    id = "galore"
    title = "GaLore"

    def projector_bytes(self, shorter: int, rank: int, itemsize: int) -> float:
        """The singular vectors of the shorter side. Of an fp32 gradient the r of them that are used are a view, so all
        stay (get_orthogonal_matrix copies only where it casts back)."""
        return float(FP32_BYTES * shorter * shorter if itemsize == FP32_BYTES else itemsize * rank * shorter)

    def projection_bytes(self, t: TrainedTensors, itemsize: int) -> float:
        """The decomposition."""
        return svd_bytes(t, itemsize)


METHOD = Galore()
