"""Work items of one optimizer step: FLOPs, bytes, launches and seconds of each kind of work.

Bytes per token are counted from what the platform's code launches: transformers 5.23 modeling_llama.py (RMSNorm,
rotary, MLP in separate kernels), PEFT 0.21 tuners/lora/layer.py, bitsandbytes 0.50 autograd/_functions.py, torch's
AdamW. A value in half precision is `c` bytes, the residual stream `a` bytes (4 where k-bit preparation made it fp32).
Backward elementwise work is twice the forward's: saved values and the incoming gradient are read.
"""

from math import ceil
from typing import Any

from estimators.adapter_time import ORTHOGONALITY_LAUNCHES, adapter_launches, add_adapter
from estimators.answer import WorkItem
from estimators.communication import Collective, collective_seconds, is_sharded, micro_batch_traffic, step_traffic
from estimators.efficiency import Rates, elementwise_seconds, flash_share_of_peak, matmul_seconds, smooth_max
from estimators.flops import (
    ATTENTION_BACKWARD,
    Passes,
    attended_length,
    attention_forward_flops,
    head_weights,
    layer_runs,
)
from estimators.methods import Method
from estimators.methods.scalar_head import task_model
from estimators.regime import LossPath, Regime
from estimators.tasks import passes_without_gradient
from estimators.work import BACKWARD_ELEMENTWISE, BARE_LAUNCH, FP32, Batch, MicroBatch, stream_bytes
from profiles.model import Block, Linear, ModelSpec, Norm
from profiles.plan import Plan
from profiles.scheme import OptimizerSpec

NF4_BYTES = 0.53125  # codes and fp32 absmax a block of 64; nested absmax saves 0.05 of it
DEQUANTIZED_BYTES = 2.0
INT8_FORWARD_BYTES = 1.0
INT8_BACKWARD_BYTES = 7.0  # two elementwise passes over CB (bitsandbytes MatMul8bitLt.backward)

# Kernels a forward pass launches (transformers 5.23 eager; fused: Unsloth's Triton kernels)
NORM_LAUNCHES = {"rmsnorm": 6, "layernorm": 1}
LAYERNORM_CASTS = 3  # autocast runs layer_norm in fp32: input, weight and bias are cast
ACTIVATION_LAUNCHES = {"gelu_new": 9, "bloom_gelu": 8}  # written out in Python; others are one kernel
ROTARY_LAUNCHES = 10
ATTENTION_LAUNCHES = 5
EXPERT_LAUNCHES = 6

# The host's cost of checkpoints, in forward kernels. A CPU, where nothing is launched, takes 2 to 10 a layer, and 1.3
# to 2.0 a saved tensor for the three calls of non-reentrant checkpoints (benchmarks/host_walks.py). A launched kernel
# costs more, a hook does not: 38 runs on an H200 are met best by 1.0 to 1.5
CHECKPOINT_LAUNCHES = 10.0
HOOK_LAUNCHES = 1.2
# Saved tensors, by forward kernels: 40 of 42 in a Llama's layer, 17 of 56 that LoRA adds to it
SAVED_BY_KERNEL, SAVED_BY_ADAPTER = 0.94, 0.31
# Host time a tensor of optimizers that walk through them one by one, in forward kernels; `tensor_seconds` is that of
# fused and foreach ones. Kernels as traced on Llama-3.2-1B, without modules and graph
LOOPING_OPTIMIZERS = {"adafactor": 25 * BARE_LAUNCH, "adamw_torch_forloop": 14 * BARE_LAUNCH}
LOOPING_METHODS = {"galore": 10 * BARE_LAUNCH, "apollo": 18 * BARE_LAUNCH}
# optim/optimizer.py: one kernel, by Python's dispatcher and ctypes, then the device is waited for (sync_gpu). From LoRA
# and full fine-tuning with 8-bit AdamW on an H200, each less the same run with fused AdamW (n=2: 5.5 and 11)
BITSANDBYTES_LAUNCHES = 8.0
BITSANDBYTES = ("8bit", "paged_adamw_32bit", "lion")

# Bytes per logit, forward and backward (memory traffic, not memory held); other losses over all logits as the full one
LOSS_BYTES: dict[LossPath, float] = {"full": 30.0, "chunked": 18.0, "fused": 12.0}
# eager attention, bytes a score by its size: matmul out, scale, mask, fp32 softmax (and back to half), matmul in
SCORE_BYTES = {2: 24.0, 4: 36.0}

FORWARD = Passes(1, 0, 0, 0)
FOREACH_PASSES = 3.0  # foreach AdamW: about 21 tensor passes where the fused kernel makes 7
STATE_TRAFFIC = 2  # states are read and written


def micro_batch(plan: Plan, model: ModelSpec, method: Method, regime: Regime, rates: Rates, batch: Batch) -> MicroBatch:
    """All work of one forward and backward pass, and of the passes without gradient that the task has beside it."""
    out = MicroBatch()
    model = task_model(plan, model)
    ranks = {x.linear.name: x.rank for x in method.adapted(model, plan)}
    kind, tokens = method.adapter(plan), batch.tokens
    for layers, block, passes in layer_runs(method, model, plan, checkpointing=regime.checkpointing):
        for linear in block.linears:
            own = passes
            if not regime.reentrant and linear.name not in ranks and ends_layer(linear, block):
                own = passes._replace(recompute=0)
            _matmul(out, linear, layers, own, regime, rates, tokens)
            if linear.name in ranks:
                add_adapter(
                    out, kind, linear, ranks[linear.name], layers,
                    passes=passes, regime=regime, rates=rates, plan=plan, tokens=tokens,
                )  # fmt: skip
        _attention(out, block, layers, passes, regime, rates, batch)
        _elementwise(out, block, layers, passes, regime, rates, tokens)
        own_kernels = _layer_launches(block, regime)
        out.launches += layers * own_kernels * passes.walks
        if passes.recompute:
            adapted = sum(linear.name in ranks for linear in block.linears)
            adapters = adapted * adapter_launches(kind, plan, regime).forward if adapted else 0
            out.launches += layers * _checkpoint_launches(own_kernels, adapters, regime)
        out.layer_passes += layers * passes.walks
    _head(out, model, regime, rates, tokens, passes=3 if method.trains_base else 2)
    if method.trains_base:
        _embedding_gradient(out, model, regime, rates)
    for _ in range(passes_without_gradient(plan)):
        out.include(forward_pass(plan, model, method, regime, rates, batch))
    return out


def forward_pass(
    plan: Plan, model: ModelSpec, method: Method, regime: Regime, rates: Rates, batch: Batch
) -> MicroBatch:
    """All work of one forward pass without gradients through the base model."""
    out, tokens = MicroBatch(), batch.tokens
    for layers, block, _ in layer_runs(method, model, plan, checkpointing=False):
        for linear in block.linears:
            _matmul(out, linear, layers, FORWARD, regime, rates, tokens)
        _attention(out, block, layers, FORWARD, regime, rates, batch)
        _elementwise(out, block, layers, FORWARD, regime, rates, tokens)
        out.launches += layers * _layer_launches(block, regime)
        out.layer_passes += layers
    _head(out, model, regime, rates, tokens, passes=1)
    return out


def ends_layer(linear: Linear, block: Block) -> bool:
    """Whether nothing after this product keeps a tensor: then a checkpoint's second forward pass stops before it.

    torch/utils/checkpoint.py ends non-reentrant recomputation (set_checkpoint_early_stop) with the last saved tensor.
    """
    follows = block.mlp.experts or any(norm.place == "post_mlp" for norm in block.norms)
    return linear.role == "down" and not follows


def _matmul(
    out: MicroBatch, linear: Linear, layers: int, passes: Passes, regime: Regime, rates: Rates, tokens: float
) -> None:
    """The base's product and, of a quantised one, what makes its weight readable."""
    routed = tokens * linear.active if linear.copies > 1 else tokens
    read = min(linear.copies, ceil(routed))
    weight = linear.in_features * linear.out_features
    once = matmul_seconds(
        rates, tokens=routed, n_in=linear.in_features, n_out=linear.out_features, itemsize=regime.compute,
        weights_read=read,
    )  # fmt: skip
    n = layers * passes.total
    if linear.copies > 1:
        once *= rates.experts
    if regime.quantized == 8:
        once *= rates.int8
    n_bytes = regime.compute * (weight * read + routed * (linear.in_features + linear.out_features))
    out.of("matmul").add(flops=2.0 * routed * weight * n, n_bytes=n_bytes * n, seconds=once * n)
    if linear.kind == "parameter":
        return  # bitsandbytes does not see bare parameters
    if regime.quantized == 4:
        n_bytes = layers * passes.reads * linear.copies * weight * (NF4_BYTES + DEQUANTIZED_BYTES)
        out.of("dequantize").add(n_bytes=n_bytes, seconds=n_bytes / rates.dequantize)
        out.launches += layers * passes.reads * linear.copies * (2 if regime.nested else 1)
    elif regime.quantized == 8:
        reads = (passes.forward + passes.recompute) * INT8_FORWARD_BYTES + passes.grad_input * INT8_BACKWARD_BYTES
        n_bytes = layers * linear.copies * weight * reads
        out.of("dequantize").add(n_bytes=n_bytes, seconds=n_bytes / rates.dequantize)
        out.launches += layers * passes.reads * 6


def _attention(
    out: MicroBatch, block: Block, layers: int, passes: Passes, regime: Regime, rates: Rates, batch: Batch
) -> None:
    """Scores and weighted sums: flash skips the causal half, eager computes and stores it."""
    a = block.attention
    v_width = a.num_heads * a.v_head_dim
    forwards = passes.forward + passes.recompute
    c = stream_bytes(regime)
    if regime.kernel in ("flash", "efficient"):
        keys = attended_length(batch.attended, causal=a.causal, window=a.sliding_window, extra_keys=batch.extra_keys)
        once = attention_forward_flops(q_width=a.q_width, v_width=v_width, keys=keys) * batch.tokens * layers
        flops = once * (forwards + ATTENTION_BACKWARD * passes.grad_input)
        best = rates.attention if regime.kernel == "flash" else rates.attention_efficient
        if c == FP32:
            best *= rates.matmul_fp32 / rates.matmul
        n_bytes = batch.tokens * layers * c * (3 * a.q_width + 2 * v_width) * (forwards + 2 * passes.grad_input)
        seconds = flops / (best * flash_share_of_peak(batch.attended)) + n_bytes / rates.bandwidth
        out.of("attention").add(flops=flops, n_bytes=n_bytes, seconds=seconds)
        return
    keys = batch.attended + batch.extra_keys
    once = attention_forward_flops(q_width=a.q_width, v_width=v_width, keys=keys) * batch.tokens * layers
    flops = once * (forwards + 2 * passes.grad_input)
    n_bytes = batch.tokens * keys * a.num_heads * layers * SCORE_BYTES[c] * (forwards + passes.grad_input)
    seconds = flops / (rates.matmul_fp32 if c == FP32 else rates.matmul) + n_bytes / rates.bandwidth
    out.of("attention").add(flops=flops, n_bytes=n_bytes, seconds=seconds * rates.attention_math)


def norm_bytes(norm: Norm, block: Block, *, a: int, c: int, fused: bool) -> float:
    """Bytes a token of one norm. RMSNorm in transformers: to fp32, square, mean, scale, back, weight: six kernels."""
    width = norm.size * (block.attention.num_heads if norm.per_head else 1)
    if fused or norm.kind == "layernorm":
        return (a + c) * width
    upcast = 2 * FP32 + 2 * a if a < FP32 else 0
    return (upcast + 5 * FP32 + 3 * c) * width


def _elementwise(
    out: MicroBatch, block: Block, layers: int, passes: Passes, regime: Regime, rates: Rates, tokens: float
) -> None:
    """Norms, rotary embedding, activation, residual adds, by the bytes they move."""
    a, c, fused = regime.residual, stream_bytes(regime), regime.fused_kernels
    attention, mlp = block.attention, block.mlp
    hidden = block.linears[0].in_features
    n_bytes = sum(norm_bytes(n, block, a=a, c=c, fused=fused) for n in block.norms)
    if attention.rotary:
        n_bytes += (2 if fused else 9) * c * (attention.q_width + attention.kv_width) * attention.partial_rotary_factor
    n_bytes += 2 * 3 * a * hidden
    n_bytes += _activation_width(block) * c * ((3 if fused else 5) if mlp.gated else 2)
    if mlp.experts:
        n_bytes += 6 * c * hidden * mlp.experts_per_token  # gather, weigh, scatter
    if regime.autocast and a == FP32:
        n_bytes += 4 * (a + c) * hidden  # a cast before each linear
    n_bytes *= layers * tokens * (passes.forward + passes.recompute + BACKWARD_ELEMENTWISE * passes.grad_input)
    seconds = elementwise_seconds(rates, n_bytes, tensor_bytes=tokens * hidden * c)
    out.of("elementwise").add(n_bytes=n_bytes, seconds=seconds)


def _activation_width(block: Block) -> int:
    """Elements a token has inside the MLP, of all active experts."""
    mlp = block.mlp
    return mlp.intermediate_size * max(mlp.experts_per_token, 1) + mlp.shared_intermediate_size


def _layer_launches(block: Block, regime: Regime) -> float:
    """Kernels of one layer's forward pass, adapters and dequantisation aside."""
    fused = regime.fused_kernels
    norms = sum(1 if fused else NORM_LAUNCHES[n.kind] for n in block.norms)
    if regime.autocast and regime.residual < FP32:
        norms += LAYERNORM_CASTS * sum(n.kind == "layernorm" for n in block.norms)
    rotary = (2 if fused else ROTARY_LAUNCHES) if block.attention.rotary else 0
    linears = sum(1 if x.kind == "parameter" or x.copies == 1 else x.copies for x in block.linears)
    attention = (1 if regime.fused_layers else ATTENTION_LAUNCHES) + (6 if regime.kernel in ("eager", "math") else 0)
    activation = 1 if fused else ACTIVATION_LAUNCHES.get(block.mlp.activation, 1) + block.mlp.gated
    experts = EXPERT_LAUNCHES * block.mlp.experts_per_token if block.mlp.experts else 0
    casts = len(block.linears) if regime.autocast and regime.residual == FP32 else 0
    return norms + rotary + linears + attention + activation + 2 + experts + casts


def _checkpoint_launches(kernels: float, adapters: float, regime: Regime) -> float:
    """What a checkpoint itself costs the host in a layer, in forward kernels.

    torch/utils/checkpoint.py keeps and restores random states and starts the engine anew; without re-entrance it calls
    a Python function for each tensor that autograd saves: in the forward pass, in the second one, and to give it back.
    """
    saved = 0.0 if regime.reentrant else SAVED_BY_KERNEL * kernels + SAVED_BY_ADAPTER * adapters
    return CHECKPOINT_LAUNCHES + HOOK_LAUNCHES * saved


def _head(out: MicroBatch, model: ModelSpec, regime: Regime, rates: Rates, tokens: float, *, passes: int) -> None:
    """Final product and loss; never recomputed. `passes`: 1 forward, 2 back to the input, 3 to the weight, too."""
    if model.head is None:
        return
    n_in, n_out = model.head.in_features, model.head.out_features
    once = matmul_seconds(rates, tokens=tokens, n_in=n_in, n_out=n_out, itemsize=regime.compute)
    if stream_bytes(regime) == FP32:
        once *= rates.matmul / rates.matmul_fp32
    once *= rates.head
    backward = passes > 1
    n = passes + (backward and regime.loss == "fused")  # TRL's makes the logits again in the backward
    out.of("head").add(flops=2.0 * tokens * head_weights(model) * n, seconds=once * n)
    n_bytes = tokens * n_out * LOSS_BYTES.get(regime.loss, LOSS_BYTES["full"]) / (1 if backward else 2)
    out.of("loss").add(n_bytes=n_bytes, seconds=n_bytes / rates.bandwidth * rates.loss)
    out.launches += 12


def _embedding_gradient(out: MicroBatch, model: ModelSpec, regime: Regime, rates: Rates) -> None:
    """The embedding's gradient is dense: filled with zeros, and where the head is tied to it, added to the head's."""
    n_bytes = float(model.vocab_size * model.hidden_size * regime.trained * (4 if model.tie_word_embeddings else 1))
    out.of("embedding").add(n_bytes=n_bytes, seconds=n_bytes / rates.bandwidth)


def optimizer_items(
    plan: Plan, model: ModelSpec, method: Method, regime: Regime, rates: Rates, optimizer: OptimizerSpec
) -> list[WorkItem]:
    """The optimizer's step by bytes a state, and gradient clipping; the cards share it where states are sharded."""
    tensors, gradients, moved = 0.0, 0.0, 0.0
    for t in method.trained_for(model, plan):
        size = regime.trained if t.in_base else regime.adapter
        state = optimizer.state_tensors * size if optimizer.state_bytes is None else optimizer.state_bytes
        tensors += t.tensors
        gradients += t.elements * t.tensors * size
        moved += t.elements * t.tensors * (3 * size + STATE_TRAFFIC * state)  # weight in and out, gradient in
    share = 1 / plan.n_gpus if is_sharded(plan) else 1.0
    n_bytes = moved * share * (FOREACH_PASSES if optimizer.step_temporary else 1.0)
    seconds = n_bytes / rates.host_link if plan.offload_optimizer else n_bytes / rates.bandwidth * rates.optimizer
    walked = tensors * _tensor_launches(plan, optimizer)
    if method.adapter(plan) == "svd":
        walked += ORTHOGONALITY_LAUNCHES * sum(x.layers for x in method.adapted(model, plan))
    host = tensors * rates.launch_per_tensor + walked * rates.launch
    items = [
        _item("optimizer", n_bytes=n_bytes, launches=tensors + walked, seconds=max(seconds, host), host=host > seconds)
    ]
    if plan.max_grad_norm > 0:
        n_bytes = 3 * gradients * share  # norm, then scale in place
        seconds = n_bytes / rates.bandwidth * rates.optimizer
        items.append(_item("gradient clipping", n_bytes=n_bytes, launches=2, seconds=seconds))
    return items


def _tensor_launches(plan: Plan, optimizer: OptimizerSpec) -> float:
    """Forward kernels' worth of host time that a looping optimizer takes a tensor; 0 for fused and foreach ones."""
    if any(part in optimizer.id for part in BITSANDBYTES):
        return BITSANDBYTES_LAUNCHES
    return LOOPING_METHODS.get(plan.method, LOOPING_OPTIMIZERS.get(optimizer.id, 0.0))


def _item(name: str, *, n_bytes: float, launches: float, seconds: float, host: bool = False) -> WorkItem:
    return WorkItem(name=name, n_bytes=n_bytes, launches=launches, seconds=seconds, bound="host" if host else "memory")


def communication_seconds(
    plan: Plan, model: ModelSpec, method: Method, regime: Regime, rates: Rates
) -> tuple[float, float, float]:
    """(per micro-batch, per step, bytes a step) of collectives, before any overlap."""
    if plan.n_gpus == 1 or plan.sharding == "none":
        return 0.0, 0.0, 0.0
    matmuls = sum(g.count * x.weight_parameters for g in model.layers for x in g.block.linears)
    rest = model.parameters - matmuls
    per_weight = NF4_BYTES if regime.quantized == 4 else 1.0 if regime.quantized == 8 else float(regime.compute)
    weights = matmuls * per_weight + rest * regime.compute
    trained = method.trainable_parameters(model, plan)
    gradients = trained * (regime.compute if method.trains_base else regime.adapter)
    micro = micro_batch_traffic(plan.sharding, weights=weights, gradients=gradients)
    step = step_traffic(plan.sharding, gradients=gradients, trained=trained * regime.trained)

    def seconds(traffic: tuple[tuple[Collective, float], ...]) -> float:
        link: dict[str, Any] = {"n_gpus": plan.n_gpus, "bandwidth": rates.link, "latency": rates.link_latency}
        return sum(collective_seconds(kind, n_bytes=n, **link) for kind, n in traffic)

    n_bytes = plan.gradient_accumulation_steps * sum(n for _, n in micro) + sum(n for _, n in step)
    return seconds(micro), seconds(step), n_bytes


def offload_seconds(plan: Plan, model: ModelSpec, regime: Regime, rates: Rates, batch: Batch) -> tuple[float, float]:
    """(seconds, bytes) a micro-batch over PCIe: checkpoints out and back, offloaded weights in for each pass."""
    n_bytes = 0.0
    if regime.offload_checkpoints:
        n_bytes += 2 * batch.tokens * model.hidden_size * regime.compute * model.num_hidden_layers
    if plan.offload_parameters:
        per_weight = NF4_BYTES if regime.quantized == 4 else float(regime.base)
        n_bytes += 2 * model.parameters * per_weight / (plan.n_gpus if is_sharded(plan) else 1)
    return n_bytes / rates.host_link, n_bytes


def overlapped(work: float, transfer: float, overlap: float) -> float:
    """What a transfer adds to `work` that it runs beside; `overlap` is the share that can hide."""
    hidden = smooth_max(work, transfer * overlap) - work
    return hidden + transfer * (1 - overlap)
