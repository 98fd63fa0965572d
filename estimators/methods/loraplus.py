"""LoRA+: LoRA with a higher learning rate for B (Hayou et al. 2024, arXiv 2402.12354): an optimizer's matter."""

from estimators.methods.linear_adapter import LinearAdapter
from estimators.methods.lora import Lora
from profiles.model import ModelSpec
from profiles.plan import Plan


class LoraPlus(Lora):
    """LoRA's tensors in two parameter groups, on a 4-bit base too."""

    id = "loraplus"
    title = "LoRA+"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """None of its own."""
        return LinearAdapter.refusal(self, model, plan)


METHOD = LoraPlus()
