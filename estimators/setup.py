"""How a method changes each layer: the LayerSetup that the tape runs with, and the regime where it differs."""

from dataclasses import dataclass, replace

from estimators.layer import LayerSetup
from estimators.methods import Method
from estimators.methods.saved_modules import saves_embedding, saves_head
from estimators.methods.some_layers import SomeLayers
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
        input_requires_grad=_reaches_input(method, model, plan, regime),
        accumulates=keeps_gradients(plan) or (method.id == "adalora" and regime.loss == "full"),
    )


def _reaches_input(method: Method, model: ModelSpec, plan: Plan, regime: Regime) -> bool:
    # a prefix's keys need gradients in every layer: the lowest one keeps nearly as much as the others
    trains_input = method.trains_base or method.adds_tokens or method.adds_keys or saves_embedding(model, plan)
    norms = [n for n in model.extra_norms if n.place == "embedding"]
    trains_norm = any(method.trains_norm(n, model, plan) or (method.id == "bitfit" and n.bias) for n in norms)
    return regime.checkpointing or trains_input or trains_norm


def keeps_gradients(plan: Plan) -> bool:
    """Whether a forward finds gradients: of earlier micro-batches, or zeroed ones (DeepSpeed and BAdam keep none).
    AdaLoRA's backward finds some in any case: those of the orthogonal penalty, which PEFT adds to the model's own loss.
    """
    zeroed = not plan.zero_grad_set_to_none and not plan.sharding.startswith("zero") and plan.method != "badam"
    return plan.gradient_accumulation_steps > 1 or zeroed


def own_regime(regime: Regime, block: Block, length: int) -> Regime:
    """The regime of one layer: a window that is not longer than the sequence needs a mask, padded or not (transformers
    masking_utils.py _ignore_causal_mask_sdpa)."""
    window = block.attention.sliding_window
    if window is None or length < window or regime.masked or regime.fused_layers or regime.kernel == "eager":
        return regime
    return replace(regime, kernel=regime.windowed, masked=True)


def layer_runs(method: Method, model: ModelSpec, plan: Plan, regime: Regime, length: int) -> list[LayerRun]:
    """All layers with what the method does to them, in the model's order; `length`: tokens of a sequence."""
    setup = layer_setup(method, model, plan, regime)
    if isinstance(method, SomeLayers):
        return _some_trained(method, model, plan, regime, setup)
    above = replace(setup, input_requires_grad=True)
    runs = [LayerRun(g.count, g.block, own_regime(regime, g.block, length), above) for g in model.layers]
    if not setup.input_requires_grad or regime.stream != regime.entry:
        first = runs[0]  # it reads the embedding's output
        narrow = replace(first.regime, stream=regime.entry)
        runs[:1] = [replace(first, count=1, regime=narrow, setup=setup), replace(first, count=first.count - 1)]
    return [run for run in runs if run.count]


def _some_trained(
    method: SomeLayers, model: ModelSpec, plan: Plan, regime: Regime, setup: LayerSetup
) -> list[LayerRun]:
    """Layers that nothing is kept of, then trained ones, the first of which passes no gradient on, and frozen ones
    between them.

    Under gradient checkpointing transformers 5.23 (activation_checkpointing_enable) makes the embedding's output
    require a gradient, so that backward reaches every layer; LLaMA-Factory checkpoints only layers that hold something
    trained (model_utils/checkpointing.py).
    """
    runs: list[LayerRun] = []
    own = replace(regime, base=regime.trained)
    checkpointed = regime.checkpointing and plan.platform != "llamafactory"
    setup = replace(setup, input_requires_grad=True)
    below = not checkpointed
    for count, block, is_trained in method.split_layers(model, plan):
        if not is_trained and below:
            runs.append(LayerRun(count, block, regime, replace(setup, input_requires_grad=False), reached=False))
            continue
        if not is_trained:
            runs.append(LayerRun(count, block, replace(regime, checkpointing=checkpointed), setup))
            continue
        trained = replace(setup, trains_weights=True)
        if below:
            lowest = replace(trained, input_requires_grad=False)
            runs.append(LayerRun(1, block, own, lowest))
            count, below = count - 1, False
        if count:
            runs.append(LayerRun(count, block, own, trained))
    return [run for run in runs if run.count]
