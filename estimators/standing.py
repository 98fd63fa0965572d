"""What lies on one card whatever the batch: weights, gradients, optimizer states, workspaces, sharded or not."""

from dataclasses import dataclass, replace

from estimators.methods import Method, TrainedTensors
from estimators.optimizer_states import state_bytes, step_temporary_bytes
from estimators.regime import Regime
from estimators.sharding import Whole, shares
from estimators.tasks import holds_reference
from estimators.weights import base_weight_bytes, largest_load_bytes
from profiles.catalog import get_optimizer
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.scheme import DTYPE_BYTES, OptimizerSpec

FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """Bytes on one card. `accumulated`: gradients between micro-batches. `gradient_share`: this card's part of a
    layer's gradient bytes. `checkpoints`: residual-sized tensors that a layer keeps under checkpointing. `whole`: what
    sharding adds."""

    base: float
    adapters: float
    gradients: float
    accumulated: float
    states: float
    temporary: float
    largest_load: float
    workspace: float
    gradient_share: float
    inputs_held: bool
    whole: Whole


@dataclass(frozen=True, slots=True)
class _Trained:
    """Sums over the trained tensors, in bytes but for `elements`. `wider`: what the base's own take above its dtype."""

    elements: float
    wider: float
    adapters: float
    gradients: float
    states: float
    temporary: float


def standing_bytes(plan: Plan, model: ModelSpec, method: Method, regime: Regime, workspace: float) -> Standing:
    """Weights, gradients and optimizer states of one card."""
    optimizer = get_optimizer(plan.optimizer)
    trained = _sum(method, model, plan, optimizer, regime)
    split = shares(
        plan,
        model,
        regime,
        trains_base=method.trains_base,
        elements=trained.elements,
        gradients=trained.gradients,
    )
    base = base_weight_bytes(model, regime) + trained.wider
    frozen = float(method.frozen_elements(model, plan) * regime.adapter)
    adapters, gradients, states = trained.adapters + frozen, trained.gradients, trained.states
    wider = 1.0 if split.stored is None else split.stored / regime.compute
    if split.stored is not None:  # trained shards and all that follows them
        base *= wider if method.trains_base else 1
        base += trained.elements * (split.stored - regime.base) if method.trains_layers else 0.0
        adapters, gradients = adapters * wider, gradients * wider
        states *= wider if optimizer.state_bytes is None else 1
    elif split.masters:  # DeepSpeed's partition is one flat fp32 tensor: no matrix to factor, no embedding
        states = trained.elements * FP32_BYTES
        if not optimizer.factored:
            states = state_bytes(optimizer, elements=int(trained.elements), tensors=1, itemsize=FP32_BYTES)
    own_gradients = 0.0 if _gradients_leave(plan) else gradients / split.gradients
    on_card = 0.0 if plan.offload_parameters else 1.0 / split.weights
    temporary = trained.temporary * wider / split.gradients
    if split.masters:
        temporary = _partition_temporary(optimizer, int(trained.elements / split.states), regime)
    largest_load = largest_load_bytes(model, regime, prepared=bool(plan.kbit_prepared))
    if split.masters and plan.kbit_prepared:  # DeepSpeed narrows again what was widened, and has the adapters by then
        largest_load += adapters
    if split.loaded:  # beside the shards, or what comes before them: adapters that PEFT makes in fp32
        first = float(max(e.parameters for e in model.embeddings) * regime.base) / split.weights
        whole = base - split.unsharded
        before = trained.elements * FP32_BYTES - whole * on_card
        largest_load = whole + max(largest_load, before, adapters + (first if plan.offload_parameters else 0.0))
    return Standing(
        base=(base - split.unsharded) * on_card
        + split.unsharded
        + reference_bytes(plan, model, regime) / split.weights,
        adapters=adapters * on_card,
        gradients=own_gradients,
        accumulated=own_gradients if split.accumulated is None else split.accumulated,
        states=0.0 if plan.offload_optimizer else states / split.states + trained.elements * split.masters,
        temporary=0.0 if plan.offload_optimizer else temporary,
        largest_load=largest_load,
        workspace=workspace,
        gradient_share=own_gradients / trained.gradients if trained.gradients else 1.0,
        inputs_held=split.inputs_held,
        whole=split.whole,
    )


def _partition_temporary(optimizer: OptimizerSpec, elements: int, regime: Regime) -> float:
    """DeepSpeed's step: gradients of this card's partition, flattened, then in fp32; these beside what the optimizer
    makes of them."""
    flat, wide = elements * regime.compute, elements * FP32_BYTES
    made = step_temporary_bytes(optimizer, trained_bytes=float(wide), sizes=[(elements, 1, FP32_BYTES, 0)])
    return max(flat + (wide if regime.compute < FP32_BYTES else 0), wide + made)


def reference_bytes(plan: Plan, model: ModelSpec, regime: Regime) -> float:
    """The second model of a task with a reference policy, as it is stored; nothing where an adapter is switched off."""
    if not holds_reference(plan):
        return 0.0
    stored = regime if regime.quantized else replace(regime, base=DTYPE_BYTES[plan.quantization])
    return base_weight_bytes(model, stored)


def _gradients_leave(plan: Plan) -> bool:
    """Whether reduced gradients go to the host, to an optimizer that runs there."""
    return plan.offload_optimizer and plan.sharding in ("fsdp2", "zero2", "zero3")


def tensor_itemsize(t: TrainedTensors, regime: Regime) -> int:
    """Bytes an element: the adapter's, or of the base's own tensors what those are trained in."""
    if t.is_copy:
        return regime.base
    return regime.trained if t.in_base else regime.adapter


def _sum(method: Method, model: ModelSpec, plan: Plan, optimizer: OptimizerSpec, regime: Regime) -> _Trained:
    tensors = [(t, tensor_itemsize(t, regime)) for t in method.trained_for(model, plan)]
    elements = wider = adapters = gradients = states = 0.0
    for t, itemsize in tensors:
        n_bytes = float(t.elements * t.tensors * itemsize)
        elements += t.elements * t.tensors
        own = t.in_base and not t.is_copy
        adapters += 0.0 if own else n_bytes
        wider += float(t.elements * t.tensors * (regime.trained - regime.base)) if own else 0.0
        gradients += n_bytes
        states += method.state_bytes(t, optimizer, itemsize)
    temporary = method.step_temporary_bytes(tensors, optimizer)
    return _Trained(
        elements=elements, wider=wider, adapters=adapters, gradients=gradients, states=states, temporary=temporary
    )
