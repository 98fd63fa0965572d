"""MiSS (Bone's successor): the input's parts of width r summed, times one trained matrix (arXiv 2409.15371)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors
from estimators.methods.linear_adapter import LinearAdapter
from profiles.model import ModelSpec
from profiles.plan import Plan


class Miss(LinearAdapter):
    """Half of LoRA's parameters at equal rank."""

    id = "miss"
    title = "MiSS"
    peft_type = "MISS"
    takes_conv1d = False

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """The matrix (r, out)."""
        yield TrainedTensors(elements=x.rank * x.linear.out_features, tensors=x.layers)

    def adapter(self, plan: Plan) -> str:
        """A sum and a product."""
        return "miss"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """The variants bat and mini run other code."""
        if isinstance(plan.method_options.get("init_weights"), str):
            return f"MiSS is modelled in its default form, not as {plan.method_options['init_weights']}"
        narrow = [x.linear for x in self.adapted(model, plan) if x.linear.in_features < plan.lora_rank]
        if narrow:
            return f"MiSS needs a rank of at most in_features, {narrow[0].in_features} of {narrow[0].name}"
        return super().refusal(model, plan)


METHOD = Miss()
