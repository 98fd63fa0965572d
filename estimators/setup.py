"""How a method changes a layer: the LayerSetup that the tape runs with."""

from estimators.layer import LayerSetup
from estimators.methods import Method
from profiles.model import ModelSpec
from profiles.plan import Plan


def layer_setup(method: Method, model: ModelSpec, plan: Plan) -> LayerSetup:
    """Adapters by linear name, what of the base is trained, virtual keys.

    The frozen embedding's output needs a gradient only if something below reads it: under checkpointing
    (enable_input_require_grads), or when the method trains the input itself.
    """
    adapted = method.adapted(model, plan)
    return LayerSetup(
        ranks=tuple(sorted({(x.linear.name, x.rank) for x in adapted})),
        dropout=plan.lora_dropout > 0 and bool(adapted),
        adapter=method.adapter(plan),
        trains_weights=method.trains_base,
        trains_biases=method.id == "bitfit",
        prefix_tokens=plan.num_virtual_tokens if method.adds_keys else 0,
        accumulates=method.trains_base and (plan.gradient_accumulation_steps > 1 or not plan.zero_grad_set_to_none),
    )
