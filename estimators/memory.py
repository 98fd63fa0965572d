"""Device memory of a plan, analytic tier: phases of a step, the worst of them, and what is not known.

A step's peak is in one of four moments: the loss (all layers' saved tensors and the logits), the backward of a layer
(what that layer makes on top of what the others still hold), the optimizer step (weights, gradients, states), or the
load. Layers and head are profiled on a tape (layer.py, logits.py); here they are stacked.
"""

from collections import OrderedDict
from dataclasses import dataclass

from estimators.answer import Component, ComponentName, MemoryEstimate, Phase, PhaseName
from estimators.interval import Interval
from estimators.layer import LayerProfile, LayerSetup, profile_layer
from estimators.layer_ops import FLASH_ROW_BLOCK
from estimators.logits import HeadProfile, profile_head
from estimators.margins import allocated_interval, reserved_interval
from estimators.methods import Method, TrainedTensors, get_method
from estimators.optimizer_states import state_bytes, step_temporary_bytes
from estimators.overhead import context_bytes, workspace_bytes
from estimators.regime import Regime, resolve_regime
from estimators.setup import layer_setup
from estimators.sharding import shares
from estimators.tape import Line
from estimators.weights import base_weight_bytes, largest_load_bytes
from profiles.calibration import Calibration
from profiles.catalog import get_optimizer
from profiles.errors import UnsupportedError
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.scheme import OptimizerSpec

INPUT_BYTES = 3 * 8  # input_ids, attention_mask, labels as int64
COMES_AND_GOES = {"saved_activations", "layer_working_set", "logits", "optimizer_temporary", "gradients", "other"}
MASK_BYTES = 1  # transformers keeps the padded causal mask as booleans for SDPA


@dataclass(frozen=True, slots=True)
class Statics:
    """Bytes that do not depend on the batch, on one card."""

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
class Profiles:
    """What the tape says: one profile per layer group, and the head."""

    layers: tuple[tuple[int, LayerProfile], ...]
    head: HeadProfile


def estimate_memory(
    plan: Plan, model: ModelSpec, hardware: Hardware, *, calibration: Calibration | None = None
) -> MemoryEstimate:
    """Estimate one card's memory for `plan` (analytic tier), in bytes.

    Raises:
        UnsupportedError: the plan cannot exist; the message is the reason.
        InvalidInputError: target_modules names a module that the model does not have.
    """
    method = get_method(plan.method)
    reason = method.refusal(model, plan)
    if reason is not None:
        raise UnsupportedError(reason)
    gpu = hardware.gpu
    regime = resolve_regime(plan, model, gpu)
    setup = layer_setup(method, model, plan)
    seq_len = plan.seq_len + (plan.num_virtual_tokens if method.adds_tokens else 0)
    tokens = plan.micro_batch_size * seq_len
    statics = static_bytes(plan, model, method, regime, workspace_bytes(gpu))
    profiles = _profiles(model, regime, setup, seq_len, tokens)
    phases = tuple(_phases(plan, model, method, regime, setup, statics, profiles, seq_len=seq_len, tokens=tokens))
    peak = max(phases, key=lambda p: p.n_bytes)
    allocated = allocated_interval(peak.n_bytes, plan)
    dynamic = sum(c.n_bytes for c in peak.components if c.name in COMES_AND_GOES)
    reserved = reserved_interval(allocated, dynamic=dynamic, plan=plan, regime=regime)
    context = context_bytes(gpu)
    device = Interval(
        low=reserved.low + context.low,
        expected=reserved.expected + context.expected,
        high=reserved.high + context.high,
    )
    return MemoryEstimate(
        basis="analytic",
        phases=phases,
        peak_phase=peak.name,
        allocated=allocated,
        reserved=reserved,
        device=device,
        budget=float(gpu.memory_bytes),
        trainable_parameters=method.trainable_parameters(model, plan),
        assumptions=_assumptions(plan, regime, hardware),
    )


def static_bytes(plan: Plan, model: ModelSpec, method: Method, regime: Regime, workspace: float) -> Statics:
    """Weights, gradients and optimizer states of one card."""
    optimizer = get_optimizer(plan.optimizer)
    trained = tuple(method.trained(model, plan))
    base = base_weight_bytes(model, regime)
    adapters = gradients = states = largest = 0.0
    for t in trained:
        itemsize = regime.trained if t.in_base else regime.adapter
        n_bytes = float(t.elements * t.tensors * itemsize)
        adapters += 0.0 if t.in_base else n_bytes
        gradients += n_bytes
        states += _states(optimizer, t, itemsize)
        largest = max(largest, float(t.elements * itemsize))
    count = float(sum(t.elements * t.tensors for t in trained))
    split = shares(plan, model, regime, trains_base=method.trains_base, trained=count)
    stored = base * 4 / regime.base if split.upcast else base
    own_gradients = gradients * (4 / regime.trained if split.upcast and method.trains_base else 1) / split.gradients
    if split.upcast and method.trains_base:
        states *= 4 / regime.trained
    elif split.masters and optimizer.state_bytes is None:
        states = count * optimizer.state_tensors * 4  # DeepSpeed's states are fp32
    states = states / split.states + count * split.masters
    return Statics(
        base=0.0 if plan.offload_parameters else stored / split.weights,
        adapters=0.0 if plan.offload_parameters else adapters / split.weights,
        gradients=own_gradients,
        states=0.0 if plan.offload_optimizer else states,
        temporary=0.0
        if plan.offload_optimizer
        else step_temporary_bytes(optimizer, trained_bytes=own_gradients, largest_bytes=largest),
        largest_load=largest_load_bytes(model, regime),
        workspace=workspace,
        gathered=split.gathered + split.unsharded_gradients,
        gradient_share=own_gradients / gradients if gradients else 1.0,
        checkpoints=split.checkpoints,
    )


def _states(optimizer: OptimizerSpec, t: TrainedTensors, itemsize: int) -> float:
    return state_bytes(optimizer, elements=t.elements, tensors=t.tensors, itemsize=itemsize)


_CACHE_SIZE = 512
_cache: OrderedDict[tuple[int, Regime, LayerSetup, int, bool], tuple[ModelSpec, Profiles]] = OrderedDict()


def _profiles(model: ModelSpec, regime: Regime, setup: LayerSetup, seq_len: int, tokens: int) -> Profiles:
    """Profile each kind of layer once per model, regime, setup and (where it matters) length."""
    tiles_full = tokens > 4096
    key = (id(model), regime, setup, _length_class(regime, seq_len, setup), tiles_full)
    known = _cache.get(key)
    if known is not None and known[0] is model:
        return known[1]
    layers = tuple((g.count, profile_layer(g.block, regime, setup, key[3])) for g in model.layers)
    profiles = Profiles(layers=layers, head=profile_head(model, regime, setup, tokens=tokens))
    _cache[key] = (model, profiles)  # the model is kept: its id cannot be taken by another one
    if len(_cache) > _CACHE_SIZE:
        _cache.popitem(last=False)
    return profiles


def _length_class(regime: Regime, seq_len: int, setup: LayerSetup) -> int:
    """Flash attention's memory is linear but for rounding to rows of 128: one length serves all multiples."""
    if regime.kernel == "flash" and seq_len % FLASH_ROW_BLOCK == 0 and not setup.prefix_tokens:
        return FLASH_ROW_BLOCK
    return seq_len


def _at(lines: tuple[Line, ...], tokens: int) -> float:
    return max(a * tokens + b for a, b in lines)


def _point(line: Line, tokens: int) -> float:
    return line[0] * tokens + line[1]


def _phases(
    plan: Plan,
    model: ModelSpec,
    method: Method,
    regime: Regime,
    setup: LayerSetup,
    statics: Statics,
    profiles: Profiles,
    *,
    seq_len: int,
    tokens: int,
) -> list[Phase]:
    inputs = float(INPUT_BYTES * tokens + _rotary_bytes(model, regime, seq_len) + _mask_bytes(regime, seq_len, tokens))
    standing = setup.accumulates
    held_gradients = statics.gradients if standing else 0.0
    checkpoint = float(statics.checkpoints * regime.residual * model.hidden_size * tokens)
    n_layers = model.num_hidden_layers
    if regime.checkpointing:
        saved = 0.0 if regime.offload_checkpoints else n_layers * checkpoint
    else:
        saved = sum(count * _point(p.saved, tokens) for count, p in profiles.layers)
    fixed: list[tuple[ComponentName, float]] = [
        ("base_weights", statics.base),
        ("adapter_weights", statics.adapters),
        ("optimizer_states", statics.states),
        ("workspace", statics.workspace),
        ("gathered", statics.gathered),
        ("inputs", inputs),
    ]
    held = profiles.head.held * tokens
    cast_copies = _autocast_copies(model, method, regime, plan)
    loss_forward = _at(profiles.head.forward, tokens) + cast_copies + held
    loss_backward = _at(profiles.head.backward, tokens)
    phases = [
        _phase("load", [("base_weights", statics.base), ("other", statics.largest_load)]),
        _phase(
            "loss",
            [
                *fixed,
                ("gradients", held_gradients),
                ("saved_activations", saved),
                ("logits", max(loss_forward, loss_backward)),
            ],
        ),
        _layer_phase(plan, model, regime, statics, profiles, fixed, held_gradients, saved, checkpoint, tokens, held),
    ]
    if method.trains_base:
        phases.append(_embedding_phase(model, regime, statics, fixed, tokens, held))
    phases.append(
        _phase(
            "optimizer_step",
            [
                *fixed,
                ("gradients", statics.gradients),
                ("optimizer_temporary", statics.temporary),
                ("logits", held),
            ],
        )
    )
    return phases


def _layer_phase(
    plan: Plan,
    model: ModelSpec,
    regime: Regime,
    statics: Statics,
    profiles: Profiles,
    fixed: list[tuple[ComponentName, float]],
    held_gradients: float,
    saved: float,
    checkpoint: float,
    tokens: int,
    held: float,
) -> Phase:
    """The worst layer's backward, at the top (all others' tensors alive) or the bottom (all gradients there)."""
    best: Phase | None = None
    total_left = profiles.head.left + sum(count * p.left for count, p in profiles.layers)
    for _, profile in profiles.layers:
        own = checkpoint if regime.checkpointing else _point(profile.saved, tokens)
        peak = _at(profile.backward, tokens)
        working = peak if regime.checkpointing else peak - own
        for position in ("top", "bottom"):
            alive = saved if position == "top" else min(saved, own)
            left = profiles.head.left if position == "top" else total_left - profile.left
            left *= statics.gradient_share
            phase = _phase(
                "layer_backward",
                [
                    *fixed,
                    ("gradients", held_gradients or left),
                    ("saved_activations", alive),
                    ("layer_working_set", working),
                    ("logits", held),
                ],
            )
            if best is None or phase.n_bytes > best.n_bytes:
                best = phase
    assert best is not None
    return best


def _embedding_phase(
    model: ModelSpec,
    regime: Regime,
    statics: Statics,
    fixed: list[tuple[ComponentName, float]],
    tokens: int,
    held: float,
) -> Phase:
    """embedding_dense_backward: a dense gradient; of a tied head it is a second one, added to the first."""
    embedding = model.embeddings[0].parameters * regime.rest
    second = float(embedding) if model.tie_word_embeddings else 0.0
    incoming = float(regime.residual * model.hidden_size * tokens)
    return _phase(
        "layer_backward",
        [*fixed, ("gradients", statics.gradients), ("layer_working_set", second + incoming), ("logits", held)],
    )


def _phase(name: PhaseName, parts: list[tuple[ComponentName, float]]) -> Phase:
    return Phase(name=name, components=tuple(Component(name=n, n_bytes=b) for n, b in parts if b > 0))


def _autocast_copies(model: ModelSpec, method: Method, regime: Regime, plan: Plan) -> float:
    """Half copies of fp32 parameters that autocast caches until its context ends; saved tensors hold them already
    where nothing is checkpointed."""
    if not (regime.autocast and regime.checkpointing):
        return 0.0
    total = 0.0
    for t in method.trained(model, plan):
        itemsize = regime.trained if t.in_base else regime.adapter
        if itemsize > regime.compute:
            total += float(t.elements * t.tensors * regime.compute)
    return total


def _rotary_bytes(model: ModelSpec, regime: Regime, seq_len: int) -> float:
    """cos and sin of one sequence's positions, shared by batch and layers."""
    attention = model.layers[0].block.attention
    return 2.0 * seq_len * attention.head_dim * regime.residual if attention.rotary else 0.0


def _mask_bytes(regime: Regime, seq_len: int, tokens: int) -> float:
    """The (batch, 1, s, s) mask of a padded batch: booleans for SDPA, the residual's dtype for eager."""
    if regime.kernel == "eager":
        return float(regime.residual * seq_len * tokens)
    return float(MASK_BYTES * seq_len * tokens) if regime.masked and regime.kernel != "flash" else 0.0


def _assumptions(plan: Plan, regime: Regime, hardware: Hardware) -> tuple[str, ...]:
    said = [*hardware.assumptions]
    said.append(f"every micro-batch may be {plan.micro_batch_size} x {plan.seq_len} tokens: the longest decides")
    said.append(
        f"attention runs in the {regime.kernel} kernel, {'with' if regime.masked else 'without'} a padding mask"
    )
    if regime.fused_kernels:
        said.append("Unsloth's kernels are modelled from their source, not run")
    if plan.sharding != "none":
        said.append("sharded states are divided evenly; gathered layers are counted whole")
    return tuple(said)
