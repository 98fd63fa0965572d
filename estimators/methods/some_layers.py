"""What freeze tuning, BAdam and LLaMA Pro share: some layers are trained, whole; backward ends below the first."""

from collections.abc import Iterator

from estimators.methods.base import Method, TrainedTensors
from estimators.methods.full import block_tensors
from profiles.model import Block, ModelSpec
from profiles.plan import QUANTIZED, Plan

SplitLayers = Iterator[tuple[int, Block, bool]]


class SomeLayers(Method):
    """Every parameter of the layers that `split_layers` marks."""

    trains_layers = True

    def split_layers(self, model: ModelSpec, plan: Plan) -> SplitLayers:
        """Yield (count, block, trained) from the first layer to the last of the model that `extended` made."""
        raise NotImplementedError

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """The layers' own tensors."""
        for count, block, is_trained in self.split_layers(model, plan):
            if is_trained:
                for t in block_tensors(block):
                    yield TrainedTensors(
                        elements=t.elements, tensors=t.tensors * count, in_base=True, columns=t.columns
                    )

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Trains weights themselves, of layers that are told apart by their place."""
        if plan.quantization in QUANTIZED:
            return f"{self.title} trains weights themselves, and {plan.quantization} weights cannot be trained"
        if len(model.layers) > 1:
            return f"the layers of {model.name} differ, and which of them come last is not recorded"
        return None
