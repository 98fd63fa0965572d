"""What all methods share that put an adapter around linears of a frozen base."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, Method, TrainedTensors, target_linears
from estimators.methods.saved_modules import saved_modules
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan


class LinearAdapter(Method):
    """Adapters of one kind at the linears that `target_modules` names. `needs_dense_weight`: the update has the
    weight's shape, which quantisation packs. `takes_conv1d`: PEFT has the adapter for GPT-2's transposed linears."""

    uses_rank = True
    needs_dense_weight = False
    takes_conv1d = True

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """The linears that `target_modules` names."""
        return target_linears(model, plan)

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """Yield what one adapted linear's adapter trains, in all its layers."""
        raise NotImplementedError

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """All adapters' tensors, and full copies of other modules where modules_to_save names them."""
        for x in self.adapted(model, plan):
            yield from self.parameters(x, plan)
        yield from saved_modules(model, plan)

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Say why this method cannot be used so, or None."""
        if self.needs_dense_weight and plan.quantization in QUANTIZED:
            return f"{self.title} builds its update in the shape of the weight, which {plan.quantization} packs"
        if not self.takes_conv1d and any(x.linear.kind == "conv1d" for x in self.adapted(model, plan)):
            return f"PEFT has no {self.title} for the Conv1D layers of {model.name}"
        return self._experts_refusal(model, plan) or super().refusal(model, plan)

    def _experts_refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """PEFT's ParamWrapper (tuners/lora/layer.py) adapts tensors that are no module's weight, by plain LoRA only."""
        if not model.has_fused_experts or all(x.linear.kind != "parameter" for x in self.adapted(model, plan)):
            return None
        if self.adapter(plan) == "dora":
            return f"PEFT has no DoRA for the fused experts of {model.name}: name other target_modules"
        if plan.lora_dropout:
            return f"PEFT has no dropout before the fused experts of {model.name}: set lora_dropout 0"
        return None
