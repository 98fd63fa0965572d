"""LLaMA Pro: copies of layers put between the model's own, and only the copies trained (Wu et al., arXiv 2401.02415).

LLaMA-Factory 0.9.5: scripts/llama_pro.py writes the expanded model, model/adapter.py (use_llama_pro) trains the last
layer of each stride. The plan names the model before its expansion.
"""

from estimators.methods.some_layers import SomeLayers, SplitLayers
from profiles.model import ModelSpec
from profiles.plan import Plan

NUM_EXPAND = 8  # of 32 layers, in the paper and in LLaMA-Factory's example


def num_expand(plan: Plan) -> int:
    """How many copies are put in."""
    return int(plan.method_options.get("num_expand", NUM_EXPAND))


class LlamaPro(SomeLayers):
    """One trained copy after every L / num_expand layers."""

    id = "llama_pro"
    title = "LLaMA Pro"

    def extended(self, model: ModelSpec, plan: Plan) -> ModelSpec:
        """The model with its copies."""
        layers = model.num_hidden_layers + num_expand(plan)
        key = next(
            (k for k in ("num_hidden_layers", "n_layer", "num_layers") if k in model.config), "num_hidden_layers"
        )
        return model.replace(layers=(model.layers[0].replace(count=layers),), config={**model.config, key: layers})

    def split_layers(self, model: ModelSpec, plan: Plan) -> SplitLayers:
        """The last of every stride is a copy."""
        block, copies = model.layers[0].block, num_expand(plan)
        for _ in range(copies):
            yield model.num_hidden_layers // copies - 1, block, False
            yield 1, block, True

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """The copies stand at equal distances."""
        copies = num_expand(plan)
        if not 1 <= copies <= model.num_hidden_layers or model.num_hidden_layers % copies:
            return f"num_expand is {copies}, which does not divide the {model.num_hidden_layers} layers of {model.name}"
        return super().refusal(model, plan)


METHOD = LlamaPro()
