"""One layer as Unsloth's fused autograd functions run it, on a tape.

From the sources of unsloth 2026.10.7 (kernels/fast_lora.py LoRA_QKV, LoRA_W, LoRA_MLP; rms_layernorm.py; swiglu.py;
rope_embedding.py; qk_norm_rope.py; utils/attention_dispatch.py), not from a run: RMSNorm keeps its input and one
statistic a row and (but for Gemma) writes its gradient over the incoming one; rotary is in place; QKV and MLP write
their input's gradient over the input; the MLP keeps its input and the two halves, and computes its gradients into them;
adapters keep nothing, A x is computed again. One dequantised weight lies in a buffer that all layers share, a second
one comes and goes in backward. xformers gets a key head for each query head.
"""

from functools import partial

from estimators import layer_ops as ops
from estimators.adapters import linear
from estimators.attention_ops import attention_core
from estimators.layer_ops import FP32, Scope
from estimators.tape import Buffer, Tensor
from estimators.weights import is_quantized
from profiles.model import Attention, Block, Linear

MASK = 1  # native_dropout's boolean mask


def is_fused(block: Block) -> bool:
    """Unsloth's fused classes: RMSNorm, gated MLP in two weights, separate q, k, v (Llama, Mistral, Qwen, Gemma)."""
    roles = {x.role for x in block.linears}
    if not any(n.place == "pre_attention" for n in block.norms):  # OLMo 2 norms only what comes out
        return False
    return {"q", "k", "v", "o", "gate", "up", "down"} <= roles and not block.mlp.experts and not block.parallel


def fused_layer_forward(scope: Scope, block: Block, x: Tensor) -> Tensor:
    """Norm, LoRA_QKV, rotary, attention, LoRA_W, norm, LoRA_MLP. Drops its hold on x."""
    tape = scope.tape
    lin: dict[str, Linear] = {str(y.role): y for y in block.linears}
    norms = {n.place: n for n in block.norms}
    gemma = block.mlp.activation.startswith("gelu")  # Gemma's norms do not reuse the gradient
    z = ops.fused_norm(scope, x, in_place=not gemma)
    q, k, v = _qkv(scope, z, lin)
    tape.drop(z)
    context = _attention(scope, q, k, v, block.attention, head_norms="q" in norms)
    attended = _output(scope, context, lin["o"])
    tape.drop(context)
    if "post_attention" in norms and "pre_mlp" in norms:  # Gemma 2
        attended = _normed_away(scope, attended, gemma)
    h = ops.residual_add(scope, x, attended)
    z = ops.fused_norm(scope, h, in_place=not gemma)
    fed = _mlp(scope, z, lin, block.mlp.activation)
    tape.drop(z)
    if "post_mlp" in norms:
        fed = _normed_away(scope, fed, gemma)
    return ops.residual_add(scope, h, fed)


def shared_weight_bytes(block: Block, ranks: dict[str, int], itemsize: int, *, dropout: bool) -> float:
    """The buffer of the largest weight that a fused function dequantises; none under dropout (fast_lora.py)."""
    linears = {str(y.role): y for y in block.linears}
    groups = (("q", "k", "v"), ("o",), ("gate", "up", "down"))
    fused = [[linears[role] for role in group] for group in groups]
    sizes = [y.in_features * y.out_features for g in fused if not dropout and _all_fused(g, ranks) for y in g]
    return float(itemsize * max(sizes, default=0))


def _normed_away(scope: Scope, x: Tensor, gemma: bool) -> Tensor:
    y = ops.fused_norm(scope, x, in_place=not gemma)
    scope.tape.drop(x)
    return y


def _all_fused(linears: list[Linear], ranks: dict[str, int]) -> bool:
    """patch_peft_model leaves a group to PEFT when one of it has no adapter, or a bias."""
    return all(y.name in ranks and not y.bias for y in linears)


def _is_group(scope: Scope, linears: list[Linear]) -> bool:
    return scope.adapter == "lora" and _all_fused(linears, scope.ranks)


def _dequantized(scope: Scope, lin: Linear) -> float:
    weight = float(lin.in_features * lin.out_features)
    return scope.regime.compute * weight if is_quantized(lin, scope.regime) else 0.0


def _elements(scope: Scope, linears: list[Linear]) -> float:
    """Elements of A and B of these linears."""
    return float(sum(scope.ranks[y.name] * (y.in_features + y.out_features) for y in linears))


def _halves(scope: Scope, linears: list[Linear]) -> float:
    """A and B in the compute dtype, and their gradients in it: both live through a fused backward."""
    copies = 2.0 if scope.regime.adapter > scope.regime.compute else 1.0
    return copies * scope.regime.compute * _elements(scope, linears)


def _low_rank(scope: Scope, linears: list[Linear]) -> float:
    """dY B^T of these linears, bytes a token."""
    return float(scope.regime.compute * sum(scope.ranks[y.name] for y in linears))


def _kept_gradients(scope: Scope, linears: list[Linear]) -> float:
    return 0.0 if scope.accumulates else scope.regime.adapter * _elements(scope, linears)


def _projected(scope: Scope, x: Tensor, lin: Linear) -> float:
    """What one product takes in forward beside its result: without the shared buffer a dense weight, under dropout
    the dropped input."""
    rank = scope.ranks[lin.name]
    low = (float(x.itemsize * rank), 0.0 if scope.dropout else float(scope.regime.compute * rank * lin.in_features))
    dropped = [(x.itemsize * x.width, 0.0), (0.0, _dequantized(scope, lin))] if scope.dropout else []
    scope.tape.scratch(low, *dropped)
    return lin.out_features


def _mask(scope: Scope, width: float) -> list[Buffer]:
    return [scope.tape.alloc(MASK * width)] if scope.dropout else []


def _release(scope: Scope, buffers: list[Buffer]) -> None:
    for buffer in buffers:
        scope.tape.release(buffer)


def _qkv(scope: Scope, z: Tensor, lin: dict[str, Linear]) -> tuple[Tensor, Tensor, Tensor]:
    """LoRA_QKV: the node of q, run first on the way back, holds what all three need; dX is written over X."""
    linears = [lin["q"], lin["k"], lin["v"]]
    if not _is_group(scope, linears):
        return linear(scope, z, lin["q"]), linear(scope, z, lin["k"]), linear(scope, z, lin["v"])
    made: dict[str, Tensor] = {}
    for role in ("k", "v", "q"):
        first, last = role == "q", role == "k"
        width = _projected(scope, z, lin[role])
        masks = _mask(scope, z.width)
        replayed = z.itemsize * z.width if scope.dropout else 0.0
        made[role] = scope.tape.op(
            z,
            width=width,
            itemsize=z.itemsize,
            saved=[z.buffer, *masks],
            over_inputs=True,
            pieces=[
                (_low_rank(scope, linears), _halves(scope, linears)),
                *([(replayed, 0.0), (0.0, _dequantized(scope, lin[role]))] if first else []),
            ],
            weight_grad=_kept_gradients(scope, linears) if last else 0.0,
            trains=True,
        )
        _release(scope, masks)
    return made["q"], made["k"], made["v"]


def _attention(scope: Scope, q: Tensor, k: Tensor, v: Tensor, spec: Attention, *, head_norms: bool) -> Tensor:
    """Rotary in place (with Qwen 3's head norms into new tensors), then xformers. Drops q, k and v."""
    tape = scope.tape
    rotate = partial(_norm_rotated, head_dim=spec.head_dim) if head_norms else _rotated
    q, k = rotate(scope, q, beside=0.0), rotate(scope, k, beside=q.width * q.itemsize)
    groups = spec.num_heads / spec.num_key_value_heads
    if groups > 1:
        k, v = _expanded(scope, k, groups), _expanded(scope, v, groups)
    out = attention_core(scope, q, k, v, spec.replace(num_key_value_heads=spec.num_heads))
    tape.drop(q, k, v)
    return out


def _expanded(scope: Scope, x: Tensor, groups: float) -> Tensor:
    y = scope.tape.op(x, width=x.width * groups, itemsize=x.itemsize)
    scope.tape.drop(x)
    return y


def _rotated(scope: Scope, x: Tensor, *, beside: float) -> Tensor:
    """A view of x; its gradient is a new tensor, made together with the other's (`beside` bytes a token)."""
    tape = scope.tape
    y = tape.op(x, width=0.0, itemsize=x.itemsize, scratch=(beside, 0.0))
    y.width, y.buffer = x.width, tape.hold(x).buffer
    tape.drop(x)
    return y


def _norm_rotated(scope: Scope, x: Tensor, *, beside: float, head_dim: int) -> Tensor:
    """Fast_QK_Norm_RoPE: keeps x and a statistic a head."""
    tape = scope.tape
    statistic = tape.alloc(FP32 * x.width / head_dim)
    y = tape.op(x, width=x.width, itemsize=x.itemsize, saved=[x.buffer, statistic], scratch=(beside, 0.0))
    tape.release(statistic)
    tape.drop(x)
    return y


def _output(scope: Scope, x: Tensor, lin: Linear) -> Tensor:
    """LoRA_W: x W^T + s (x A^T) B^T; keeps x, makes a new gradient."""
    if not _is_group(scope, [lin]):
        return linear(scope, x, lin)
    width = _projected(scope, x, lin)
    masks = _mask(scope, x.width)
    replayed = x.itemsize * x.width if scope.dropout else 0.0
    out = scope.tape.op(
        x,
        width=width,
        itemsize=x.itemsize,
        saved=[x.buffer, *masks],
        pieces=[(_low_rank(scope, [lin]), _halves(scope, [lin])), (replayed, 0.0), (0.0, _dequantized(scope, lin))],
        weight_grad=_kept_gradients(scope, [lin]),
        trains=True,
    )
    _release(scope, masks)
    return out


def _mlp(scope: Scope, z: Tensor, lin: dict[str, Linear], activation: str) -> Tensor:
    """LoRA_MLP: keeps z, gate and up; backward needs one more tensor of their width, and writes dX over z."""
    tape = scope.tape
    linears = [lin["gate"], lin["up"], lin["down"]]
    if not _is_group(scope, linears):
        return _plain_mlp(scope, z, lin, activation)
    width, itemsize = lin["gate"].out_features, z.itemsize
    masks = [m for w in (z.width, z.width, float(width)) for m in _mask(scope, w)]
    gate, up = tape.alloc(width * itemsize), tape.alloc(width * itemsize)
    hidden = tape.alloc(width * itemsize * (2 if scope.dropout else 1))
    _projected(scope, z, lin["down"])
    replayed = 2.0 * width * itemsize if scope.dropout else 0.0
    dense = max(_dequantized(scope, y) for y in (linears if scope.dropout else linears[:2]))
    out = tape.op(
        z,
        width=lin["down"].out_features,
        itemsize=itemsize,
        saved=[z.buffer, gate, up, *masks],
        over_inputs=True,
        pieces=[
            (float(width * itemsize), 0.0),
            (replayed, 0.0),
            (_low_rank(scope, linears), _halves(scope, linears)),
            (0.0, dense),
        ],
        weight_grad=_kept_gradients(scope, linears),
        trains=True,
    )
    _release(scope, [gate, up, hidden, *masks])
    return out


def _plain_mlp(scope: Scope, z: Tensor, lin: dict[str, Linear], activation: str) -> Tensor:
    """transformers' MLP: where an adapter is missing, or is none of plain LoRA."""
    tape = scope.tape
    gate = linear(scope, z, lin["gate"])
    acted = ops.activation(scope, gate, activation)
    tape.drop(gate)
    hidden = ops.multiply(scope, acted, linear(scope, z, lin["up"]))
    out = linear(scope, hidden, lin["down"])
    tape.drop(hidden)
    return out
