"""LoRA: W x + (alpha / r) B A x, with A (r, in) and B (out, r) trained (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, Method, TrainedTensors, target_linears
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, Plan


class Lora(Method):
    """Low-rank adapters beside chosen linears of a frozen base."""

    id = "lora"
    title = "LoRA"
    peft_type = "LORA"
    uses_rank = True

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """The linears that `target_modules` names."""
        return target_linears(model, plan)

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """A and B of each adapted linear."""
        for x in self.adapted(model, plan):
            yield TrainedTensors(elements=x.rank * x.linear.in_features, tensors=x.layers)
            yield TrainedTensors(elements=x.rank * x.linear.out_features, tensors=x.layers)

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """A 4-bit base makes it QLoRA, which is a method of its own here."""
        if plan.quantization in FOUR_BIT:
            return f"LoRA on a {plan.quantization} base is QLoRA: see the method qlora"
        return super().refusal(model, plan)


METHOD = Lora()
