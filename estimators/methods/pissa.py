"""PiSSA: LoRA that starts from the weight's principal singular vectors (Meng et al. 2024, arXiv 2404.02948)."""

from estimators.methods.lora import Lora
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan


class Pissa(Lora):
    """LoRA while training; the start takes a singular value decomposition of each weight, one at a time."""

    id = "pissa"
    title = "PiSSA"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """PEFT (tuners/lora/layer.py pissa_init) decomposes float weights only."""
        if plan.quantization in QUANTIZED:
            return f"PiSSA is initialised from float weights, not from a {plan.quantization} base"
        return super().refusal(model, plan)


METHOD = Pissa()
