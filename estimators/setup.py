"""How a method changes each layer: the LayerSetup that the tape runs with, and the regime where it differs."""

from dataclasses import dataclass, replace

from estimators.layer import LayerSetup
from estimators.methods import Method
from estimators.methods.freeze import split_layers
from estimators.methods.saved_modules import saves_head
from estimators.regime import Regime
from profiles.model import Block, ModelSpec
from profiles.plan import Plan


@dataclass(frozen=True, slots=True)
class LayerRun:
    """`count` equal layers and how they are run. `reached`: backward goes through them."""

    count: int
    block: Block
    regime: Regime
    setup: LayerSetup
    reached: bool = True


def layer_setup(method: Method, model: ModelSpec, plan: Plan, regime: Regime) -> LayerSetup:
    """Adapters by linear name, what of the base is trained, virtual keys.

    The frozen embedding's output needs a gradient only if something below reads it: under checkpointing
    (enable_input_require_grads), or when the method trains the input itself.
    """
    adapted = method.adapted(model, plan)
    norms = [n for g in model.layers for n in g.block.norms] + list(model.extra_norms)
    return LayerSetup(
        ranks=tuple(sorted({(x.linear.name, x.rank) for x in adapted})),
        adapter=method.adapter(plan),
        dropout=plan.lora_dropout > 0 and bool(adapted),
        trains_weights=method.trains_base,
        trains_biases=method.id == "bitfit",
        trained_norms=frozenset(n.name for n in norms if method.trains_norm(n, model, plan)),
        trains_head=saves_head(model, plan),
        prefix_tokens=plan.num_virtual_tokens if method.adds_keys else 0,
        accumulates=_finds_gradients(method, model, plan, regime),
    )


def _finds_gradients(method: Method, model: ModelSpec, plan: Plan, regime: Regime) -> bool:
    """Whether gradients are there before a layer's backward, large enough to be noticed: from earlier micro-batches, or
    from AdaLoRA's orthogonal penalty, which PEFT adds to the model's own loss and whose backward runs first."""
    if method.id == "adalora" and regime.loss == "full":
        return True
    large = method.trains_base or method.id == "freeze" or saves_head(model, plan)
    return large and (plan.gradient_accumulation_steps > 1 or not plan.zero_grad_set_to_none)


def layer_runs(method: Method, model: ModelSpec, plan: Plan, regime: Regime) -> list[LayerRun]:
    """All layers with what the method does to them, in the model's order."""
    setup = layer_setup(method, model, plan, regime)
    if method.id != "freeze":
        return [LayerRun(g.count, g.block, regime, setup) for g in model.layers]
    return _frozen_below(model, plan, regime, setup)


def _frozen_below(model: ModelSpec, plan: Plan, regime: Regime, setup: LayerSetup) -> list[LayerRun]:
    """Layers that nothing is kept of, then the trained ones, the first of which passes no gradient on."""
    runs: list[LayerRun] = []
    own = replace(regime, base=regime.trained, rest=regime.trained)
    below = True
    for count, block, is_trained in split_layers(model, plan):
        if not is_trained:
            runs.append(LayerRun(count, block, regime, replace(setup, input_requires_grad=False), reached=False))
            continue
        trained = replace(setup, trains_weights=True)
        if below:
            runs.append(LayerRun(1, block, own, replace(trained, input_requires_grad=False)))
            count, below = count - 1, False
        if count:
            runs.append(LayerRun(count, block, own, trained))
    return runs
