"""Freeze: only the last layers are trained, whole; backward ends below them (LLaMA-Factory's finetuning_type)."""

from estimators.methods.some_layers import SomeLayers, SplitLayers
from profiles.model import ModelSpec
from profiles.plan import Plan

TRAINABLE_LAYERS = 2  # LLaMA-Factory 0.9.5 hparams/finetuning_args.py freeze_trainable_layers


def trainable_layers(plan: Plan) -> int:
    """How many layers from the end are trained."""
    return int(plan.method_options.get("freeze_trainable_layers", TRAINABLE_LAYERS))


class Freeze(SomeLayers):
    """Every parameter of the last `freeze_trainable_layers` layers."""

    id = "freeze"
    title = "freeze tuning"

    def split_layers(self, model: ModelSpec, plan: Plan) -> SplitLayers:
        """Frozen ones, then trained ones."""
        frozen = model.num_hidden_layers - trainable_layers(plan)
        for group in model.layers:
            below = min(max(frozen, 0), group.count)
            frozen -= below
            if below:
                yield below, group.block, False
            if group.count > below:
                yield group.count - below, group.block, True

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Only the last layers are modelled."""
        wanted = trainable_layers(plan)
        if not 1 <= wanted <= model.num_hidden_layers:
            return f"freeze_trainable_layers is {wanted}; {model.name} has layers 1 to {model.num_hidden_layers}"
        return super().refusal(model, plan)


METHOD = Freeze()
