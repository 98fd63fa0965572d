"""What lies on one card whatever the batch: weights, gradients, optimizer states, workspaces, sharded or not."""

from dataclasses import dataclass

from estimators.methods import Method, TrainedTensors
from estimators.regime import Regime
from estimators.sharding import shares
from estimators.weights import base_weight_bytes, largest_load_bytes
from profiles.catalog import get_optimizer
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.scheme import OptimizerSpec

FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """Bytes on one card. `gradient_share`: this card's part of a layer's gradient bytes. `checkpoints`: residual-sized
    tensors that a layer keeps under gradient checkpointing."""

    base: float
    adapters: float
    gradients: float
    states: float
    temporary: float
    largest_load: float
    workspace: float
    gathered: float
    gradient_share: float
    checkpoints: int


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
    split = shares(plan, model, regime, trains_base=method.trains_base, trained=trained.elements)
    base = base_weight_bytes(model, regime) + trained.wider
    frozen = float(method.frozen_elements(model, plan) * regime.adapter)
    gradients, states = trained.gradients, trained.states
    if split.upcast:  # trained shards and all that follows them in fp32
        base *= FP32_BYTES / regime.base
        gradients *= FP32_BYTES / regime.trained
        states *= FP32_BYTES / regime.trained
    elif split.masters and optimizer.state_bytes is None:
        states = trained.elements * optimizer.state_tensors * FP32_BYTES  # DeepSpeed's states are fp32
    own_gradients = gradients / split.gradients
    on_card = 0.0 if plan.offload_parameters else 1.0 / split.weights
    temporary = trained.temporary * (FP32_BYTES / regime.trained if split.upcast else 1.0) / split.gradients
    return Standing(
        base=base * on_card,
        adapters=(trained.adapters + frozen) * on_card,
        gradients=own_gradients,
        states=0.0 if plan.offload_optimizer else states / split.states + trained.elements * split.masters,
        temporary=0.0 if plan.offload_optimizer else temporary,
        largest_load=largest_load_bytes(model, regime),
        workspace=workspace,
        gathered=split.gathered + split.unsharded_gradients,
        gradient_share=own_gradients / trained.gradients if trained.gradients else 1.0,
        checkpoints=split.checkpoints,
    )


def tensor_itemsize(t: TrainedTensors, regime: Regime) -> int:
    """Bytes an element: the adapter's, or of the base's own tensors what those are trained in."""
    if t.is_copy:
        return regime.rest
    return regime.trained if t.in_base else regime.adapter


def _sum(method: Method, model: ModelSpec, plan: Plan, optimizer: OptimizerSpec, regime: Regime) -> _Trained:
    tensors = [(t, tensor_itemsize(t, regime)) for t in method.trained(model, plan)]
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
