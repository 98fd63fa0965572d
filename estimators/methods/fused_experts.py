"""LoRA on experts that transformers 5 holds as bare tensors.

PEFT 0.21.2 (utils/transformers_weight_conversion.py) takes "all-linear" to mean what it meant when experts were
modules: the router, and all experts' projections, gate and up together at twice the rank. The names that it turns into
parameters then no longer reach modules: a shared expert and dense layers go without adapters. LLaMA-Factory 0.9.5 pins
PEFT 0.18.1, which has no such conversion: there, the linears that are modules are adapted, and the experts are not.
"""

from estimators.methods.base import AdaptedLinear
from profiles.model import Linear, ModelSpec
from profiles.plan import Plan

CONVERTED = frozenset({"mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "glm4_moe"})
LEAVES = ("gate_proj", "up_proj", "down_proj")


def with_experts(found: tuple[AdaptedLinear, ...], model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
    """The linears that "all-linear" adapts in a model with fused experts."""
    converts = model.model_type in CONVERTED and plan.platform != "llamafactory"
    if not converts or "all-linear" not in plan.target_modules:
        return found
    modules = tuple(x for x in found if x.linear.name.rsplit(".", 1)[-1] not in LEAVES)
    roles: tuple[str, ...] = ("router", "gate_up", "down")
    if (
        plan.platform == "unsloth"
    ):  # its projects name the modules: no router, and no experts where no module has a name
        if len(modules) == len(found):
            return found
        roles = roles[1:]
    return modules + tuple(
        AdaptedLinear(linear=x, layers=g.count * x.copies, rank=_rank(x, plan))
        for g in model.layers
        for x in g.block.linears
        if x.kind == "parameter" and x.role in roles
    )


def _rank(x: Linear, plan: Plan) -> int:
    return plan.lora_rank * (2 if x.role == "gate_up" else 1)
