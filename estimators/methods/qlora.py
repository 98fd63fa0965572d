"""QLoRA: LoRA beside a frozen 4-bit base that is dequantised for each product (Dettmers et al., arXiv 2305.14314)."""

from estimators.methods.linear_adapter import LinearAdapter
from estimators.methods.lora import Lora
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, Plan


class QLora(Lora):
    """Adapters as LoRA's; what differs is how the base is stored and read."""

    id = "qlora"
    title = "QLoRA"
    needs_quantized_base = True

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Needs a 4-bit base; over int8 it is plain LoRA on an 8-bit base."""
        if plan.quantization == "int8":
            return "QLoRA means a 4-bit base; LoRA on an int8 base is the method lora with int8"
        if plan.quantization in FOUR_BIT and not _has_quantizable(model):
            return f"{model.name} has no nn.Linear that bitsandbytes could quantise"
        return LinearAdapter.refusal(self, model, plan)


def _has_quantizable(model: ModelSpec) -> bool:
    """Tell whether bitsandbytes finds anything to replace: it takes nn.Linear and GPT-2's Conv1D."""
    return any(x.kind not in ("parameter", "subclass") for g in model.layers for x in g.block.linears)


METHOD = QLora()
