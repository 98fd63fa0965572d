"""What GaLore and APOLLO share: full fine-tuning whose optimizer keeps states of gradients projected to rank r.

A gradient of m x n becomes max(m, n) x r (proj_type "std": the shorter side is projected), so Adam keeps 2 r max(m, n)
elements and a projector of r min(m, n), in the gradient's dtype. Embeddings, norms and what `target_modules` leaves out
keep Adam's full states. Both walk through the parameters one by one, and Python keeps the last one's temporaries until
the next has made its own.
"""

from collections.abc import Mapping, Sequence

from estimators.methods.base import TrainedTensors, target_linears
from estimators.methods.full import Full
from estimators.optimizer_states import FP32_BYTES, state_bytes
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.scheme import OptimizerSpec


class Projected(Full):
    """`optimizers`: ids of those whose projected form the packages have."""

    uses_rank = True
    optimizers: frozenset[str] = frozenset({"adamw_torch", "adamw_torch_fused", "adamw_torch_forloop"})

    def projected(self, model: ModelSpec, plan: Plan) -> Mapping[str, int]:
        """The targets. transformers' "all-linear" (trainer_optimizer.py) takes an untied head too, LLaMA-Factory's
        "all" does not."""
        ranks = {x.linear.name: plan.lora_rank for x in target_linears(model, plan)}
        head = model.head
        if "all-linear" in plan.target_modules and plan.platform == "hf" and head is not None:
            ranks |= {} if model.tie_word_embeddings else {head.name: plan.lora_rank}
        return ranks

    def state_bytes(self, t: TrainedTensors, optimizer: OptimizerSpec, itemsize: int) -> float:
        """States of the projected gradient, and the projector."""
        if not t.rank:
            return super().state_bytes(t, optimizer, itemsize)
        shorter, longer = _sides(t)
        rank = min(t.rank, shorter)
        states = state_bytes(optimizer, elements=rank * longer, tensors=t.tensors, itemsize=itemsize)
        return states + t.tensors * self.projector_bytes(shorter, rank, itemsize)

    def projector_bytes(self, shorter: int, rank: int, itemsize: int) -> float:
        """What a matrix whose shorter side is `shorter` keeps to project with."""
        return float(rank * shorter * itemsize)

    def step_temporary_bytes(self, trained: Sequence[tuple[TrainedTensors, int]], optimizer: OptimizerSpec) -> float:
        """The highest point of the loop. Adam's denominator and quotient, of a projected gradient small; then the
        update in the weight's shape."""
        peak = held = 0.0
        for t, itemsize in sorted(trained, key=lambda x: x[0].rank):  # the projected group comes last
            n_bytes = float(t.elements * itemsize)
            if not t.rank:
                peak = max(peak, held + n_bytes, held / 2 + 2 * n_bytes)
                held = 2 * n_bytes
                continue
            peak = max(peak, self.projection_bytes(t, itemsize) + held, 2 * n_bytes)
            held = n_bytes
            if t.tensors > 1:
                peak = max(peak, held + self.projection_bytes(t, itemsize), self.held_updates * n_bytes)
        return peak

    held_updates = 2  # tensors of a weight's shape at the end of its turn

    def projection_bytes(self, t: TrainedTensors, itemsize: int) -> float:
        """What making the projector takes."""
        raise NotImplementedError

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Quantised weights are not trained; other optimizers have no projected form; the states are one card's."""
        if plan.optimizer not in self.optimizers:
            return f"{self.title} is an AdamW of its own: the optimizer {plan.optimizer} has no such form"
        if plan.sharding not in ("none", "ddp"):
            return f"{self.title} projects whole gradients: it does not run with {plan.sharding}"
        return super().refusal(model, plan)


def _sides(t: TrainedTensors) -> tuple[int, int]:
    rows = t.elements // t.columns
    return min(rows, t.columns), max(rows, t.columns)


def svd_bytes(t: TrainedTensors, itemsize: int) -> float:
    """torch.linalg.svd of a gradient: an fp32 copy where it is in 16 bits, cuSOLVER's copy, U and Vh. cuSOLVER's own
    workspace is not counted: it is not published."""
    shorter, longer = _sides(t)
    copies = 2 if itemsize < FP32_BYTES else 1
    return float(FP32_BYTES * (copies * t.elements + shorter * longer + shorter * shorter))
