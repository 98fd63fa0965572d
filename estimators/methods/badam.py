"""BAdam: one layer is trained at a time, with an fp32 copy and Adam's states of it (Luo et al. 2024, arXiv 2404.02827).

badam 1.4 block_optim.py BlockOptimizer, LLaMA-Factory's badam_mode "layer". The layer changes every 50 steps; the first
one is the dearest, since backward then goes through all others.
"""

from collections.abc import Sequence

from estimators.methods.base import TrainedTensors
from estimators.methods.some_layers import SomeLayers, SplitLayers
from estimators.optimizer_states import FP32_BYTES
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.scheme import OptimizerSpec


class BAdam(SomeLayers):
    """The first layer, while it is the active one. It stays in 16 bits; its copy makes the step."""

    id = "badam"
    title = "BAdam"
    in_half = True

    def split_layers(self, model: ModelSpec, plan: Plan) -> SplitLayers:
        """The active layer, then the frozen ones that backward passes through."""
        group = model.layers[0]
        yield 1, group.block, True
        if group.count > 1:
            yield group.count - 1, group.block, False

    def state_bytes(self, t: TrainedTensors, optimizer: OptimizerSpec, itemsize: int) -> float:
        """The copy (_switch_trainable_params_single_gpu) and its states, all fp32."""
        copy = float(t.elements * t.tensors * FP32_BYTES)
        return copy + super().state_bytes(t, optimizer, FP32_BYTES)

    def step_temporary_bytes(self, trained: Sequence[tuple[TrainedTensors, int]], optimizer: OptimizerSpec) -> float:
        """Gradients become fp32 ones, parameter by parameter (_grad_to_hp); beside them what the optimizer makes, then
        a parameter's copy in 16 bits (_update_param)."""
        wider = sum(float(t.elements * t.tensors * (FP32_BYTES - itemsize)) for t, itemsize in trained)
        copy = max((float(t.elements * itemsize) for t, itemsize in trained if itemsize < FP32_BYTES), default=0.0)
        return wider + max(copy, super().step_temporary_bytes([(t, FP32_BYTES) for t, _ in trained], optimizer))

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """LLaMA-Factory (hparams/parser.py) distributes it with ZeRO-3 only, which is not modelled."""
        if plan.n_gpus > 1:
            return "BAdam over several cards needs DeepSpeed ZeRO-3, which is not modelled"
        return super().refusal(model, plan)


METHOD = BAdam()
