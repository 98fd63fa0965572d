"""FourierFT: the update is the inverse Fourier transform of a few trained coefficients (arXiv 2405.03003)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors, target_linears
from estimators.methods.linear_adapter import LinearAdapter
from profiles.model import ModelSpec
from profiles.plan import Plan

FREQUENCIES = 1000  # tuners/fourierft/config.py n_frequency


class FourierFt(LinearAdapter):
    """n_frequency numbers a linear; the dense update is kept for backward."""

    id = "fourierft"
    title = "FourierFT"
    peft_type = "FOURIERFT"
    uses_rank = False
    needs_dense_weight = True
    takes_conv1d = False

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """The targets; the rank is the number of coefficients."""
        n = int(plan.method_options.get("n_frequency", FREQUENCIES))
        return tuple(AdaptedLinear(linear=x.linear, layers=x.layers, rank=n) for x in target_linears(model, plan))

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """The spectrum."""
        yield TrainedTensors(elements=x.rank, tensors=x.layers)

    def adapter(self, plan: Plan) -> str:
        """A dense update."""
        return "fourierft"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """A linear needs as many elements as coefficients are wanted."""
        small = [x for x in self.adapted(model, plan) if x.linear.in_features * x.linear.out_features < x.rank]
        if small:
            return f"FourierFT wants {small[0].rank} coefficients of {small[0].linear.name}, which has fewer elements"
        return super().refusal(model, plan)


METHOD = FourierFt()
