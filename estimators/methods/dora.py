"""DoRA: m (W + B A) / |W + B A|, the magnitude m trained beside A and B (Liu et al. 2024, arXiv 2402.09353)."""

from estimators.methods.linear_adapter import LinearAdapter
from estimators.methods.lora import Lora
from profiles.model import ModelSpec
from profiles.plan import Plan


class Dora(Lora):
    """LoRA with use_dora, on any base that PEFT can dequantise."""

    id = "dora"
    title = "DoRA"

    def adapter(self, plan: Plan) -> str:
        """Always decomposed."""
        return "dora"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """A 4-bit base is allowed (QDoRA)."""
        return LinearAdapter.refusal(self, model, plan)


METHOD = Dora()
