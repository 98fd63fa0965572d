"""LoftQ: LoRA that starts from what quantising the weight loses (Li et al. 2023, arXiv 2310.08659)."""

from estimators.methods.lora import Lora
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan


class LoftQ(Lora):
    """LoRA while training; the start quantises each weight in turn and decomposes the difference."""

    id = "loftq"
    title = "LoftQ"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """PEFT (utils/loftq_utils.py) starts from float weights; it quantises them itself, one at a time."""
        if plan.quantization in QUANTIZED:
            return f"LoftQ is initialised from float weights, not from a {plan.quantization} base"
        return super().refusal(model, plan)


METHOD = LoftQ()
