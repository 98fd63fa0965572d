"""One layer as Unsloth's fused autograd functions run it, on a tape.

From the sources of unsloth 2026.10 (kernels/fast_lora.py LoRA_QKV, LoRA_W, LoRA_MLP; rms_layernorm.py; swiglu.py;
rope_embedding.py), not from a run: RMSNorm keeps its input and one statistic a row and writes its gradient in place;
rotary is in place; the MLP keeps its input and the two halves, and computes its gradients into them; adapters keep
nothing, A x is computed again. One dequantised weight is alive at a time, in a buffer that is shared by all layers.
"""

from estimators import layer_ops as ops
from estimators.layer_ops import FP32, Scope
from estimators.tape import Line, Tensor
from profiles.model import Block, Linear, Norm


def is_fused(block: Block) -> bool:
    """Unsloth's fused classes: RMSNorm, gated MLP in two weights, separate q, k, v (Llama, Mistral, Qwen, Gemma)."""
    roles = {x.role for x in block.linears}
    if not any(n.place == "pre_attention" for n in block.norms):  # OLMo 2 norms only what comes out
        return False
    return {"q", "k", "v", "o", "gate", "up", "down"} <= roles and not block.mlp.experts and not block.parallel


def fused_layer_forward(scope: Scope, block: Block, x: Tensor) -> Tensor:
    """Norm, LoRA_QKV, rotary, flash attention, LoRA_W, norm, LoRA_MLP. Drops its hold on x."""
    tape = scope.tape
    lin: dict[str, Linear] = {str(y.role): y for y in block.linears}
    norms = {n.place: n for n in block.norms}
    z = _norm(scope, x, norms["pre_attention"])
    q, k, v = (_projection(scope, z, lin[role]) for role in ("q", "k", "v"))
    tape.drop(z)
    context = ops.attention_core(scope, q, k, v, block.attention)
    tape.drop(q, k, v)
    attended = _projection(scope, context, lin["o"])
    tape.drop(context)
    if "post_attention" in norms and "pre_mlp" in norms:  # Gemma 2 and 3
        attended = _normed(scope, attended, norms["post_attention"])
    h = ops.residual_add(scope, x, attended)
    z = _norm(scope, h, norms.get("pre_mlp") or norms["post_attention"])
    fed = _mlp(scope, z, lin)
    tape.drop(z)
    if "post_mlp" in norms:
        fed = _normed(scope, fed, norms["post_mlp"])
    return ops.residual_add(scope, h, fed)


def _norm(scope: Scope, x: Tensor, spec: Norm) -> Tensor:
    statistic = scope.tape.alloc(FP32)
    y = scope.tape.op(x, width=x.width, itemsize=x.itemsize, saved=[x.buffer, statistic], passes=[x])
    scope.tape.release(statistic)
    return y


def _normed(scope: Scope, x: Tensor, spec: Norm) -> Tensor:
    y = _norm(scope, x, spec)
    scope.tape.drop(x)
    return y


def _dequantized(scope: Scope, lin: Linear) -> Line:
    if not scope.regime.quantized:
        return (0.0, 0.0)
    return (0.0, scope.regime.compute * float(lin.in_features * lin.out_features))


def _gradients(scope: Scope, lin: Linear) -> float:
    rank = scope.ranks.get(lin.name, 0)
    if scope.trains_weights:
        return float(scope.regime.trained * lin.weight_parameters)
    return float(scope.regime.adapter * rank * (lin.in_features + lin.out_features))


def _projection(scope: Scope, x: Tensor, lin: Linear) -> Tensor:
    """x W^T + s (x A^T) B^T; keeps x when anything is trained here."""
    scope.tape.scratch(*_dequantized(scope, lin))
    trained = scope.trains_weights or lin.name in scope.ranks
    weight = ops.weight_gradient(scope, _gradients(scope, lin), 0.0) if trained else None
    extra = weight["scratch"] if weight else (0.0, 0.0)
    dequantized = _dequantized(scope, lin)
    return scope.tape.op(
        x,
        width=lin.out_features,
        itemsize=x.itemsize,
        saved=[x.buffer] if trained else [],
        scratch=(extra[0] + dequantized[0], extra[1] + dequantized[1]),
        weight_grad=weight["weight_grad"] if weight else 0.0,
        trains=trained,
    )


def _mlp(scope: Scope, z: Tensor, lin: dict[str, Linear]) -> Tensor:
    """down(act(gate z) * up z): keeps z, gate and up; backward needs one more tensor of their width."""
    tape = scope.tape
    width, itemsize = lin["gate"].out_features, z.itemsize
    halves = tape.alloc(2.0 * width * itemsize)
    tape.scratch(width * itemsize, max(_dequantized(scope, x)[1] for x in (lin["gate"], lin["up"], lin["down"])))
    trained = scope.trains_weights or any(x.name in scope.ranks for x in (lin["gate"], lin["up"], lin["down"]))
    gradients = sum(_gradients(scope, lin[role]) for role in ("gate", "up", "down")) if trained else 0.0
    kept = 0.0 if scope.accumulates else gradients
    out = tape.op(
        z,
        width=lin["down"].out_features,
        itemsize=itemsize,
        saved=[z.buffer, halves],
        scratch=(width * itemsize, _dequantized(scope, lin["down"])[1] + (gradients - kept)),
        weight_grad=kept,
        trains=trained,
    )
    tape.release(halves)
    return out
