"""Work items of one optimizer step: FLOPs, bytes, launches and seconds of each kind of work.

Bytes per token are counted from what the platform's code launches: transformers 5.23 modeling_llama.py (RMSNorm,
rotary, MLP in separate kernels), PEFT 0.21 tuners/lora/layer.py, bitsandbytes 0.50 autograd/_functions.py, torch's
AdamW. A value in half precision is `c` bytes, the residual stream `a` bytes (4 where k-bit preparation made it fp32).
Backward elementwise work is twice the forward's: saved values and the incoming gradient are read.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import Any

from estimators.answer import WorkItem
from estimators.communication import Collective, collective_seconds, is_sharded, micro_batch_traffic, step_traffic
from estimators.efficiency import Rates, elementwise_seconds, flash_share_of_peak, matmul_seconds, smooth_max
from estimators.flops import (
    ATTENTION_BACKWARD,
    Passes,
    attended_length,
    attention_forward_flops,
    head_weights,
    layer_passes,
)
from estimators.methods import AdaptedLinear, Method
from estimators.regime import Regime
from profiles.model import Block, Linear, ModelSpec, Norm
from profiles.plan import Plan
from profiles.scheme import OptimizerSpec

FP32 = 4
BACKWARD_ELEMENTWISE = 2  # reads of saved values and gradients against one forward pass
NF4_BYTES = 0.53125  # codes and fp32 absmax a block of 64; nested absmax saves 0.05 of it
DEQUANTIZED_BYTES = 2.0
INT8_FORWARD_BYTES = 1.0
INT8_BACKWARD_BYTES = 7.0  # two elementwise passes over CB (bitsandbytes MatMul8bitLt.backward)

# Kernels a forward pass launches (transformers 5.23 eager; fused: Unsloth's Triton kernels)
NORM_LAUNCHES = {"rmsnorm": 6, "layernorm": 1}
ROTARY_LAUNCHES = 10
ATTENTION_LAUNCHES = 5
LORA_LAUNCHES = 7
LORA_FUSED_LAUNCHES = 3
EXPERT_LAUNCHES = 6

# Bytes per logit, forward and backward (memory traffic, not memory held)
LOSS_BYTES = {"full": 30.0, "chunked": 18.0, "fused": 12.0}
# eager attention, bytes a score by its size: matmul out, scale, mask, fp32 softmax (and back to half), matmul in
SCORE_BYTES = {2: 24.0, 4: 36.0}

FOREACH_PASSES = 3.0  # foreach AdamW: about 21 tensor passes where the fused kernel makes 7
STATE_TRAFFIC = 2  # states are read and written


@dataclass(slots=True)
class Work:
    """A running sum of one kind of work."""

    flops: float = 0.0
    n_bytes: float = 0.0
    launches: float = 0.0
    seconds: float = 0.0

    def add(self, *, flops: float = 0.0, n_bytes: float = 0.0, seconds: float = 0.0) -> None:
        """Add one contribution."""
        self.flops += flops
        self.n_bytes += n_bytes
        self.seconds += seconds


@dataclass(slots=True)
class Batch:
    """Shape of a micro-batch: `sequences` of `length` computed tokens, attending over `attended` each."""

    sequences: float
    length: float
    attended: float
    extra_keys: int = 0

    @property
    def tokens(self) -> float:
        """Computed tokens of a micro-batch, padding and virtual tokens with them."""
        return self.sequences * self.length


@dataclass(slots=True)
class MicroBatch:
    """Seconds of a forward and backward pass, by kind; kernels that the host launches, layers that it walks."""

    work: dict[str, Work] = field(default_factory=dict)
    launches: float = 0.0
    layer_passes: float = 0.0

    def of(self, kind: str) -> Work:
        """The sum of that kind, made when first asked for."""
        return self.work.setdefault(kind, Work())

    @property
    def seconds(self) -> float:
        """GPU seconds of all kinds."""
        return sum(w.seconds for w in self.work.values())


def stream_bytes(regime: Regime) -> int:
    """Bytes of a value between the linears: without autocast an fp32 residual stream makes all of it fp32.

    bitsandbytes' Linear4bit computes in its own dtype and casts its output back to the input's.
    """
    return FP32 if regime.residual == FP32 and not regime.autocast else regime.compute


def micro_batch(plan: Plan, model: ModelSpec, method: Method, regime: Regime, rates: Rates, batch: Batch) -> MicroBatch:
    """All work of one forward and backward pass."""
    out = MicroBatch()
    passes = layer_passes(method, checkpointing=regime.checkpointing)
    adapters = {x.linear.name: x for x in method.adapted(model, plan)}
    dora = bool(plan.method_options.get("use_dora"))
    for group in model.layers:
        block, layers = group.block, group.count
        for linear in block.linears:
            _matmul(out, linear, layers, passes, regime, rates, batch.tokens)
            adapter = adapters.get(linear.name)
            if adapter is not None:
                _adapter(out, adapter, layers, passes, regime, rates, plan, batch.tokens, dora=dora)
        _attention(out, block, layers, passes, regime, rates, batch)
        _elementwise(out, block, layers, passes, regime, rates, batch.tokens)
        out.launches += layers * _layer_launches(block, regime) * (2 + passes.recompute)
        out.layer_passes += layers * (2 + passes.recompute)
    _head(out, model, passes, regime, rates, batch.tokens)
    return out


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


def _adapter(
    out: MicroBatch, adapter: AdaptedLinear, layers: int, passes: Passes, regime: Regime, rates: Rates, plan: Plan,
    tokens: float, *, dora: bool,
) -> None:  # fmt: skip
    """LoRA's two thin products (bound by memory), dropout, casts to the adapter's dtype and back, scale and add."""
    linear, rank, c = adapter.linear, adapter.rank, stream_bytes(regime)
    n_in, n_out = linear.in_features, linear.out_features
    units = passes.forward + passes.recompute + BACKWARD_ELEMENTWISE
    thin = c * (n_in + 2 * rank + n_out)
    cast = 0 if regime.fused_kernels or regime.adapter == c else 2 * (c + regime.adapter) * n_in
    dropout = 0 if plan.lora_dropout == 0 else (2 * c + 1) * n_in
    combine = (3 * c if regime.fused_kernels else 5 * c) * n_out
    n_bytes = layers * tokens * units * (thin + cast + dropout + combine)
    flops = layers * tokens * 2.0 * rank * (n_in + n_out) * (passes.forward + passes.recompute + 2)
    in_fp32 = regime.adapter == FP32 and not regime.autocast
    seconds = elementwise_seconds(rates, n_bytes, tensor_bytes=tokens * n_in * c) * rates.adapters
    seconds += flops / (rates.matmul_fp32 if in_fp32 else rates.matmul)
    out.of("adapters").add(flops=flops, n_bytes=n_bytes, seconds=seconds)
    launches = LORA_FUSED_LAUNCHES if regime.fused_kernels else LORA_LAUNCHES + (2 if plan.lora_dropout else 0)
    out.launches += layers * launches * (2 + passes.recompute)
    if dora:  # norm of W + B A in every forward pass (arXiv 2402.09353; PEFT tuners/lora/dora.py)
        forwards = passes.forward + passes.recompute
        extra = layers * forwards * n_in * n_out
        n_bytes = extra * (5 * c + FP32)
        out.of("adapters").add(
            flops=2.0 * extra * rank,
            n_bytes=n_bytes,
            seconds=n_bytes / rates.bandwidth + 2.0 * extra * rank / rates.matmul,
        )
        out.launches += layers * forwards * 12


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
        flops = once * (forwards + ATTENTION_BACKWARD)
        best = rates.attention if regime.kernel == "flash" else rates.attention_efficient
        if c == FP32:
            best *= rates.matmul_fp32 / rates.matmul
        n_bytes = batch.tokens * layers * c * (3 * a.q_width + 2 * v_width) * (forwards + 2)
        seconds = flops / (best * flash_share_of_peak(batch.attended)) + n_bytes / rates.bandwidth
        out.of("attention").add(flops=flops, n_bytes=n_bytes, seconds=seconds)
        return
    keys = batch.attended + batch.extra_keys
    once = attention_forward_flops(q_width=a.q_width, v_width=v_width, keys=keys) * batch.tokens * layers
    flops = once * (forwards + 2)
    n_bytes = batch.tokens * keys * a.num_heads * layers * SCORE_BYTES[c] * (forwards + 1)
    seconds = flops / (rates.matmul_fp32 if c == FP32 else rates.matmul) + n_bytes / rates.bandwidth
    out.of("attention").add(flops=flops, n_bytes=n_bytes, seconds=seconds)


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
    n_bytes *= layers * tokens * (passes.forward + passes.recompute + BACKWARD_ELEMENTWISE)
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
    rotary = (2 if fused else ROTARY_LAUNCHES) if block.attention.rotary else 0
    linears = sum(1 if x.kind == "parameter" or x.copies == 1 else x.copies for x in block.linears)
    attention = ATTENTION_LAUNCHES + (6 if regime.kernel in ("eager", "math") else 0)
    activation = 1 if fused or not block.mlp.gated else 2
    experts = EXPERT_LAUNCHES * block.mlp.experts_per_token if block.mlp.experts else 0
    casts = len(block.linears) if regime.autocast and regime.residual == FP32 else 0
    return norms + rotary + linears + attention + activation + 2 + experts + casts


def _head(out: MicroBatch, model: ModelSpec, passes: Passes, regime: Regime, rates: Rates, tokens: float) -> None:
    """Final product and loss; never recomputed. Its weight's gradient only where the base is trained."""
    if model.head is None:
        return
    n_in, n_out = model.head.in_features, model.head.out_features
    once = matmul_seconds(rates, tokens=tokens, n_in=n_in, n_out=n_out, itemsize=regime.compute)
    if stream_bytes(regime) == FP32:
        once *= rates.matmul / rates.matmul_fp32
    n = 2 + passes.grad_weight
    out.of("head").add(flops=2.0 * tokens * head_weights(model) * n, seconds=once * n)
    n_bytes = tokens * n_out * LOSS_BYTES[regime.loss]
    out.of("loss").add(n_bytes=n_bytes, seconds=n_bytes / rates.bandwidth)
    out.launches += 12


def optimizer_items(
    plan: Plan, model: ModelSpec, method: Method, regime: Regime, rates: Rates, optimizer: OptimizerSpec
) -> list[WorkItem]:
    """The optimizer's step by bytes a state, and gradient clipping; the cards share it where states are sharded."""
    elements, tensors = 0.0, 0.0
    for t in method.trained(model, plan):
        elements += t.elements * t.tensors
        tensors += t.tensors
    own = elements / plan.n_gpus if is_sharded(plan) else elements
    size = regime.trained if method.trains_base else regime.adapter
    state = optimizer.state_tensors * size if optimizer.state_bytes is None else optimizer.state_bytes
    per_element = 2 * size + size + STATE_TRAFFIC * state
    passes = FOREACH_PASSES if optimizer.step_temporary else 1.0
    n_bytes = own * per_element * passes
    seconds = n_bytes / (rates.host_link if plan.offload_optimizer else rates.bandwidth)
    host = tensors * rates.launch_per_tensor
    items = [_item("optimizer", n_bytes=n_bytes, launches=tensors, seconds=max(seconds, host), host=host > seconds)]
    if plan.max_grad_norm > 0:
        n_bytes = own * size * 3  # norm, then scale in place
        items.append(_item("gradient clipping", n_bytes=n_bytes, launches=2, seconds=n_bytes / rates.bandwidth))
    return items


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
