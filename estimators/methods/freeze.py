"""Freeze: only the last layers are trained, whole; backward ends below them (LLaMA-Factory's finetuning_type)."""

from collections.abc import Iterator

from estimators.methods.base import Method, TrainedTensors
from estimators.methods.full import block_tensors
from profiles.model import Block, ModelSpec
from profiles.plan import QUANTIZED, Plan

TRAINABLE_LAYERS = 2  # LLaMA-Factory 0.9.5 hparams/finetuning_args.py freeze_trainable_layers


def trainable_layers(plan: Plan) -> int:
    """How many layers from the end are trained."""
    return int(plan.method_options.get("freeze_trainable_layers", TRAINABLE_LAYERS))


def split_layers(model: ModelSpec, plan: Plan) -> Iterator[tuple[int, Block, bool]]:
    """Yield (count, block, trained), in the model's order of groups."""
    frozen = model.num_hidden_layers - trainable_layers(plan)
    for group in model.layers:
        below = min(max(frozen, 0), group.count)
        frozen -= below
        if below:
            yield below, group.block, False
        if group.count > below:
            yield group.count - below, group.block, True


class Freeze(Method):
    """Every parameter of the last `freeze_trainable_layers` layers."""

    id = "freeze"
    title = "freeze tuning"

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """The layers' own tensors."""
        for count, block, is_trained in split_layers(model, plan):
            if is_trained:
                for t in block_tensors(block):
                    yield TrainedTensors(elements=t.elements, tensors=t.tensors * count, in_base=True)

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Trains weights themselves; only the last layers are modelled."""
        if plan.quantization in QUANTIZED:
            return f"freeze tuning trains weights themselves, and {plan.quantization} weights cannot be trained"
        wanted = trainable_layers(plan)
        if not 1 <= wanted <= model.num_hidden_layers:
            return f"freeze_trainable_layers is {wanted}; {model.name} has layers 1 to {model.num_hidden_layers}"
        if len(model.layers) > 1:
            return f"the layers of {model.name} differ, and which of them come last is not recorded"
        return None


METHOD = Freeze()
