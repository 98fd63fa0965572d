"""LoRA: W x + (alpha / r) B A x, with A (r, in) and B (out, r) trained (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors
from estimators.methods.fused_experts import with_experts
from estimators.methods.linear_adapter import LinearAdapter
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, QUANTIZED, Plan


class Lora(LinearAdapter):
    """Low-rank adapters beside chosen linears of a frozen base; `use_dora` among the options makes it DoRA."""

    id = "lora"
    title = "LoRA"
    peft_type = "LORA"
    starts_from_weights = False  # the start is computed from the base's weights, which then have to be floats

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """The linears that `target_modules` names, fused experts among them."""
        return with_experts(super().adapted(model, plan), model, plan)

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """A, B and, of DoRA, the magnitude vector."""
        n_in, n_out = x.linear.in_features, x.linear.out_features
        yield TrainedTensors(elements=x.rank * n_in, tensors=x.layers, columns=n_in)
        yield TrainedTensors(elements=x.rank * n_out, tensors=x.layers, columns=x.rank)
        if self.adapter(plan) == "dora":
            yield TrainedTensors(elements=x.linear.out_features, tensors=x.layers)

    def adapter(self, plan: Plan) -> str:
        """Plain, or decomposed into magnitude and direction."""
        return "dora" if plan.method_options.get("use_dora") else "lora"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """A 4-bit base makes it QLoRA, which is a method of its own here; a start from weights needs float ones."""
        if self.starts_from_weights and plan.quantization in QUANTIZED:
            return f"{self.title} is initialised from float weights, not from a {plan.quantization} base"
        if plan.quantization in FOUR_BIT:
            return f"LoRA on a {plan.quantization} base is QLoRA: see the method qlora"
        return super().refusal(model, plan)


METHOD = Lora()
