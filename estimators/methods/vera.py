"""VeRA: one pair of frozen random matrices for all layers, scaled by trained vectors (arXiv 2310.11454)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors
from estimators.methods.linear_adapter import LinearAdapter
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan


class Vera(LinearAdapter):
    """Two vectors a linear; the shared matrices are as wide as the widest target."""

    id = "vera"
    title = "VeRA"
    peft_type = "VERA"

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """d (rank) and b (out)."""
        yield TrainedTensors(elements=x.rank, tensors=x.layers)
        yield TrainedTensors(elements=x.linear.out_features, tensors=x.layers)

    def frozen_elements(self, model: ModelSpec, plan: Plan) -> int:
        """The shared A (rank, widest input) and B (widest output, rank)."""
        linears = [x.linear for x in self.adapted(model, plan)]
        return plan.lora_rank * (max(x.in_features for x in linears) + max(x.out_features for x in linears))

    def adapter(self, plan: Plan) -> str:
        """Two frozen products, each followed by a vector."""
        return "vera"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """TRL casts the vectors to bf16 over a quantised base; the shared matrices stay in fp32."""
        if plan.quantization in QUANTIZED:
            return f"VeRA over a {plan.quantization} base fails under TRL: its matrices and vectors differ in dtype"
        return super().refusal(model, plan)


METHOD = Vera()
