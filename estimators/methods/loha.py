"""LoHa: the update is the elementwise product of two low-rank matrices (FedPara, arXiv 2108.06098)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors
from estimators.methods.linear_adapter import LinearAdapter
from profiles.plan import Plan


class Loha(LinearAdapter):
    """Twice LoRA's parameters; the dense update is kept for backward."""

    id = "loha"
    title = "LoHa"
    peft_type = "LOHA"
    needs_dense_weight = True
    takes_conv1d = False

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """Two pairs of factors."""
        yield TrainedTensors(elements=x.rank * x.linear.out_features, tensors=2 * x.layers)
        yield TrainedTensors(elements=x.rank * x.linear.in_features, tensors=2 * x.layers)

    def adapter(self, plan: Plan) -> str:
        """A dense update."""
        return "loha"


METHOD = Loha()
