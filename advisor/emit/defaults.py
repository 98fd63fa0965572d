"""What a plan leaves open, the same on every platform: precision, learning rate, evaluations, checkpoints."""

from advisor.plans import published_rate
from profiles.model import ModelSpec
from profiles.plan import FloatType, Plan

EVALUATIONS, EVALUATIONS_EARLY_STOPPING = 4, 10  # over the whole run; transformers reads eval_steps < 1 as a share
CHECKPOINTS = 10
STEPS_PER_EVALUATION = 4  # of a run so short that ten evaluations would cost more than its training


def choose_precision(plan: Plan) -> FloatType | None:
    """The dtype to compute in; None leaves it to the machine that the run finds itself on."""
    if plan.compute_dtype is not None:
        return plan.compute_dtype
    if plan.quantization in ("bf16", "fp16"):
        return plan.quantization
    return "fp32" if plan.quantization == "fp32" and plan.mixed_precision is not True else None


def learning_rate(plan: Plan, model: ModelSpec) -> float:
    """As planned, else a published starting point."""
    return plan.learning_rate or published_rate(plan.method, plan.task, model)


def evaluations(plan: Plan) -> int:
    """How often the held-out rows are evaluated in the whole run."""
    wanted = EVALUATIONS_EARLY_STOPPING if plan.early_stopping_patience else EVALUATIONS
    return wanted if plan.max_steps is None else max(1, min(wanted, plan.max_steps // STEPS_PER_EVALUATION))


def checkpoints(plan: Plan) -> int:
    """How many checkpoints are written: with early stopping at each evaluation, since the best is one of them."""
    return evaluations(plan) if plan.early_stopping_patience else CHECKPOINTS
