"""What sharding leaves on one card: shares of weights, gradients and states, and the whole tensors that it needs.

FSDP2 as accelerate 1.15 sets it up (utils/fsdp_utils.py fsdp2_prepare_model): a unit a decoder layer, the embedding one
of its own, final norm and head another (with the embedding where tied) that stays gathered to the end of forward.
Trained parameters become fp32, are gathered in 16 bits, and their gradients go back to fp32. What is whole when, was
read off the simulated tier, which runs torch's own code (torch 2.13 distributed/fsdp/_fully_shard):
- forward: the embedding and its flat buffer, then a layer and its own (kept until the next layer is gathered, so three
  layers' at the turn), at last the head and its own;
- backward: a layer, the buffer of the next one (prefetched; the embedding's follows the lowest layer's), and the last
  reduce-scatter's input.
Between micro-batches gradients are not reduced (Trainer's `no_sync`): whole ones stay on every card.

DDP's reducer (csrc/distributed/c10d/reducer.cpp) keeps all gradients once more, in buckets.

DeepSpeed 0.19.8 (runtime/zero), as accelerate's own file starts it, so with DeepSpeed's default sizes: all weights in
16 bits, fp32 masters and states divided from stage 1 on, gradients from 2, weights from 3. The reduction buffer is
allocated whole whatever the model (stage_1_and_2.py setup_buckets: while backward runs; stage3.py
_setup_for_real_optimizer: for good), and what is in it is copied to be reduced.
"""

from dataclasses import dataclass, replace

from estimators.methods import get_method
from estimators.regime import Regime
from estimators.weights import is_quantized, linear_bytes
from profiles.catalog import get_optimizer
from profiles.model import Block, ModelSpec
from profiles.plan import Plan

WHOLE_TENSORS_ONLY = frozenset({"adalora"})  # peft tuners/adalora/model.py: its penalty multiplies parameters itself
FP32_BYTES = 4
CODES_PER_BYTE = 2  # of 4-bit weights; their scales stay whole on each card (bitsandbytes keeps them on the module)
# deepspeed 0.19.8 runtime/zero/config.py, in elements
REDUCE_BUCKET = 500_000_000
PREFETCH_BUCKET = 50_000_000
REUSE_DISTANCE = 1_000_000_000


def fsdp2_refusal(method: str, optimizer: str) -> str | None:
    """Why FSDP2 cannot shard a run of these two, or None: some code takes no DTensors, which FSDP2 makes of what is
    trained (seen in the simulated tier, where torch's own FSDP2 runs it)."""
    if method in WHOLE_TENSORS_ONLY:
        return f"FSDP2 shards what {get_method(method).title} multiplies outside of the model: use ddp"
    spec = get_optimizer(optimizer)
    if not spec.takes_dtensors:
        return f"{spec.name} cannot update FSDP2's shards: use adamw_torch_fused, or zero3"
    return None


@dataclass(frozen=True, slots=True)
class Whole:
    """Bytes on one card beyond its shares, by phase of the step; `start`: of forward, nothing is saved yet; `turn`:
    from one layer of forward to the next, nothing of the next is computed yet; `head`: of the loss, no logits are made
    yet; `end`: of backward, all gradients are there and nothing is saved any more;
    `logits`, `prefetched`, `lowest`: what the head's forward, and the product behind the logits' gradient, have above
    `loss`, and the lowest layer's backward above `backward`;
    `reduced`: what that has above it at times, from the share `reduced_from` of the layers on."""

    start: float = 0.0
    forward: float = 0.0
    turn: float = 0.0
    head: float = 0.0
    loss: float = 0.0
    backward: float = 0.0
    embedding: float = 0.0
    end: float = 0.0
    step: float = 0.0
    logits: float = 0.0
    prefetched: float = 0.0
    lowest: float = 0.0
    reduced: float = 0.0
    reduced_from: float = 1.0


@dataclass(frozen=True, slots=True)
class Shares:
    """What one card keeps. `weights`, `gradients`, `states`: divisors.

    masters: fp32 master copy, bytes per trained parameter on this card. stored: bytes an element of a trained parameter
    and its gradient on the card, None where it is what it is computed in. unsharded: bytes that are on each card
    whatever `weights` is. accumulated: gradients that wait for the last micro-batch. loaded: 1 if the whole base stands
    on the card until all shards are cut from it. inputs_held: inputs of checkpointed layers, and their gradients, stay
    to the end of backward.
    """

    weights: int = 1
    gradients: int = 1
    states: int = 1
    masters: float = 0.0
    stored: int | None = None
    unsharded: float = 0.0
    accumulated: float | None = None
    loaded: int = 0
    inputs_held: bool = False
    whole: Whole = Whole()


def shares(
    plan: Plan, model: ModelSpec, regime: Regime, *, trains_base: bool, elements: float, gradients: float
) -> Shares:
    """Resolve a plan's sharding. `elements`, `gradients`: trained elements in all, and bytes of their gradients."""
    if plan.sharding == "none":
        return Shares()
    if plan.sharding == "ddp":
        return Shares(whole=_always(gradients))
    if plan.sharding == "fsdp2" and plan.fsdp_version == 1:
        return _fsdp1(plan, model, regime, trains_base=trains_base)
    if plan.sharding == "fsdp2":
        return _fsdp2(plan, model, regime, trains_base=trains_base, elements=elements)
    return _zero(plan, model, regime, trains_base=trains_base, elements=elements)


def _always(n_bytes: float) -> Whole:
    return Whole(
        start=n_bytes, forward=n_bytes, head=n_bytes, loss=n_bytes, backward=n_bytes, embedding=n_bytes, step=n_bytes
    )


def _fsdp1(plan: Plan, model: ModelSpec, regime: Regime, *, trains_base: bool) -> Shares:
    """The older FSDP, for published runs: one root unit, gathered from forward to the end of backward, whose gradients
    wait there until then, and a layer at a time, in forward beside the next one.

    Where a layer trains nothing of its own unit, a hook on its inputs' gradients reshards it (torch 2.4
    distributed/fsdp/_runtime_utils.py _register_post_backward_reshard_only_hook); its handle holds them until backward
    is over. Under reentrant checkpoints these are copies that only the run again has, and their gradients.
    """
    n = plan.n_gpus
    layer = max(_layer_bytes(g.block, regime) for g in model.layers)
    embedding = _embedding_bytes(model, regime)
    tail = _head_bytes(model, regime)
    root = embedding if model.tie_word_embeddings else embedding + tail
    return Shares(
        n,
        n,
        n,
        stored=FP32_BYTES if regime.autocast and trains_base else None,
        unsharded=_scale_bytes(model, regime),
        inputs_held=regime.checkpointing and regime.reentrant and not trains_base,
        whole=Whole(
            start=root + layer,
            forward=root + 2 * layer,
            loss=root,
            backward=root + layer + (tail if trains_base else 0.0),
            embedding=root + (root if trains_base else 0.0),
            end=root + (root if trains_base else 0.0),
        ),
    )


def _fsdp2(plan: Plan, model: ModelSpec, regime: Regime, *, trains_base: bool, elements: float) -> Shares:
    n = plan.n_gpus
    mixed = plan.mixed_precision is not False and regime.compute < FP32_BYTES
    upcast = mixed and (trains_base or not regime.quantized)
    trained = elements * (regime.compute if mixed else regime.base if trains_base else regime.adapter)
    if not mixed:  # gathered as it is stored
        regime = replace(regime, compute=regime.base)
    layers = sum(g.count for g in model.layers)
    adapters = 0.0 if trains_base else trained / layers
    layer = max(_layer_bytes(g.block, regime) for g in model.layers) + adapters
    tail = _head_bytes(model, regime)
    kept = tail if model.tie_word_embeddings else 0.0  # gathered for the embedding, and until backward is through
    embedding = _embedding_bytes(model, regime)
    method = get_method(plan.method)  # TRL's losses read the head's weight themselves, but not behind soft prompts
    alone = regime.loss == "full"  # the next layer is gathered when the logits' gradient is there
    by_hooks = alone or method.adds_tokens or method.adds_keys
    shard = embedding * (FP32_BYTES / regime.compute if upcast else 1) / n
    reduced = max(layer, tail) if trains_base else adapters
    return Shares(
        weights=n, gradients=n, states=n,
        stored=FP32_BYTES if upcast else None,
        unsharded=_scale_bytes(model, regime),
        accumulated=trained if plan.gradient_accumulation_steps > 1 else None,
        loaded=int(regime.quantized == 4),  # fsdp2_prepare_model holds `original_sd`; other weights come in shards
        whole=Whole(
            start=2 * (embedding + layer) if kept else max(2 * embedding, embedding + 2 * layer),
            forward=2 * layer + kept,
            turn=3 * layer + kept,
            head=0.0 if kept else (2 if by_hooks else 1) * tail + layer,
            loss=tail if alone else tail + (max(tail, layer) if by_hooks and not kept else layer),
            logits=(layer if kept else tail) if alone else 0.0,
            prefetched=layer if alone else 0.0,
            lowest=0.0 if kept else max(0.0, embedding - layer),
            backward=2 * layer + kept + reduced,
            embedding=max(layer + 2 * embedding - shard, 0.0 if kept else (2 + 1 / n) * embedding),
        ),
    )  # fmt: skip


def _zero(plan: Plan, model: ModelSpec, regime: Regime, *, trains_base: bool, elements: float) -> Shares:
    n, stage = plan.n_gpus, int(plan.sharding.removeprefix("zero"))
    bucket = float(REDUCE_BUCKET * regime.compute)
    copied = min(REDUCE_BUCKET, elements) * regime.compute
    full = elements > REDUCE_BUCKET and stage >= 2  # reduced while backward runs, not only after it
    first = _embedding_bytes(model, regime) if stage >= 2 and trains_base else 0.0
    second = 2 * first if model.tie_word_embeddings else 0.0  # gone when the sum of a tied embedding's is reduced
    gathered = _zero3_gathered(model, regime) if stage == 3 else 0.0
    always = bucket if stage == 3 else 0.0
    return Shares(
        weights=n if stage == 3 else 1,
        gradients=n if stage >= 2 else 1,
        states=n,
        masters=FP32_BYTES / n,
        whole=Whole(
            start=always,
            forward=gathered + always,
            loss=gathered + bucket,
            backward=gathered + bucket,
            lowest=copied if full else 0.0,
            reduced=copied if full else 0.0,
            reduced_from=REDUCE_BUCKET / elements if full else 1.0,
            embedding=gathered + bucket + first + max(0.0, (copied if full else 0.0) - second),
            end=gathered + bucket + copied,
            step=always,
        ),
    )  # fmt: skip


def _zero3_gathered(model: ModelSpec, regime: Regime) -> float:
    """What a stage-3 card holds of the others' weights: what backward wants again before REUSE_DISTANCE elements are
    passed (so half as many from the end; partitioned_param_coordinator.py __params_to_release), the prefetched, and the
    layer at work."""
    largest = max(g.block.parameters for g in model.layers)
    return float(min(model.parameters, REUSE_DISTANCE // 2 + PREFETCH_BUCKET + largest) * regime.compute)


def _layer_bytes(block: Block, regime: Regime) -> float:
    """One gathered layer, in the compute dtype; of quantised weights, the codes."""
    other = sum(n.parameters for n in block.norms) + block.other_parameters
    total = float(other * regime.compute)
    for linear in block.linears:
        if not is_quantized(linear, regime):
            total += (linear.weight_parameters + linear.bias_parameters) * regime.compute
        elif regime.quantized == 8:
            total += linear_bytes(linear, regime)
        else:
            total += linear.weight_parameters / CODES_PER_BYTE + linear.bias_parameters * regime.compute
    return total


def _scale_bytes(model: ModelSpec, regime: Regime) -> float:
    """Scales of 4-bit weights."""
    if regime.quantized != 4:
        return 0.0
    quantized = [(g.count, x) for g in model.layers for x in g.block.linears if is_quantized(x, regime)]
    return sum(
        count * (linear_bytes(x, regime) - x.weight_parameters / CODES_PER_BYTE - x.bias_parameters * regime.base)
        for count, x in quantized
    )


def _embedding_bytes(model: ModelSpec, regime: Regime) -> float:
    return float(sum(e.parameters for e in model.embeddings) * regime.compute)


def _head_bytes(model: ModelSpec, regime: Regime) -> float:
    if model.head is None:
        return 0.0
    tied = sum(e.parameters for e in model.embeddings) if model.tie_word_embeddings else 0
    return float(max(tied, model.head.weight_parameters) * regime.compute)
