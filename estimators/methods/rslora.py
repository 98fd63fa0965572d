"""rsLoRA: LoRA scaled by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732). Nothing else differs from LoRA."""

from estimators.methods.linear_adapter import LinearAdapter
from estimators.methods.lora import Lora
from profiles.model import ModelSpec
from profiles.plan import Plan


class RsLora(Lora):
    """LoRA with use_rslora, on a 4-bit base too."""

    id = "rslora"
    title = "rsLoRA"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """None of its own."""
        return LinearAdapter.refusal(self, model, plan)


METHOD = RsLora()
