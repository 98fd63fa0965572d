"""A mixture of experts as transformers 5.23 runs it (integrations/moe.py grouped_mm_experts_forward), on a tape.

Each token is copied for each of its experts; the grouped product does not run under autocast. Cards before compute
capability 8.0 have no such kernel: the product is written out in Python there, and its backward makes the gradient of
all experts whether they are trained or not. PEFT 0.21.2 adapts a bare tensor by adding the update to all of it before
the product (tuners/lora/layer.py ParamWrapper).
"""

from collections.abc import Callable

from estimators import layer_ops as ops
from estimators.adapters import linear
from estimators.layer_ops import FP32, PARAMETER, Scope
from estimators.tape import Tensor
from profiles.model import Block, Linear

INDEX = 8
INDICES = 3  # of each copy: its token, its place among the sorted, and the way back

DenseMlp = Callable[[Scope, Block, Tensor, dict[str, Linear]], Tensor]


def mixture(scope: Scope, block: Block, z: Tensor, dense: DenseMlp) -> Tensor:
    """Router, experts and, with `dense`, the shared expert beside them. z stays with the caller."""
    tape = scope.tape
    lin = {str(x.role): x for x in block.linears if not x.shared_expert}
    shared = {str(x.role): x for x in block.linears if x.shared_expert}
    beside = _shared(scope, block, z, shared, lin.get("shared_gate"), dense) if shared else None
    scores = _scores(scope, z, lin["router"], block)
    out = _experts(scope, block, z, lin, scores)
    tape.drop(scores)
    return out if beside is None else ops.residual_add(scope, out, beside)


def _shared(
    scope: Scope, block: Block, z: Tensor, lin: dict[str, Linear], gate: Linear | None, dense: DenseMlp
) -> Tensor:
    out = dense(scope, block, z, lin)
    if gate is None:
        return out
    logit = linear(scope, z, gate)
    open_ = scope.tape.op(logit, width=logit.width, itemsize=logit.itemsize)
    scope.tape.save_output(open_)
    scope.tape.drop(logit)
    return ops.multiply(scope, open_, out, width=out.width)


def _scores(scope: Scope, z: Tensor, router: Linear, block: Block) -> Tensor:
    """The chosen experts' weights: of an fp32 softmax over all; gpt-oss's over the chosen, in their own dtype."""
    tape, chosen = scope.tape, block.mlp.experts_per_token
    logits = linear(scope, z, router)
    indices = tape.alloc(float(INDEX * chosen))
    if block.attention.sinks:
        top = tape.op(logits, width=chosen, itemsize=logits.itemsize, saved=[indices])
        scores = tape.op(top, width=chosen, itemsize=logits.itemsize)
        tape.save_output(scores)
        tape.drop(logits, top)
    else:
        probabilities = tape.op(logits, width=logits.width, itemsize=FP32)
        tape.save_output(probabilities)
        tape.drop(logits)
        scores = tape.op(probabilities, width=chosen, itemsize=FP32, saved=[indices])
        tape.drop(probabilities)
        if block.mlp.shared_intermediate_size and "shared_gate" in {x.role for x in block.linears}:
            wide, scores = scores, tape.cast(scores, scope.matmul)  # Qwen 2 casts them back
            tape.drop(wide)
    tape.release(indices)
    return scores


def _experts(scope: Scope, block: Block, z: Tensor, lin: dict[str, Linear], scores: Tensor) -> Tensor:
    tape, chosen = scope.tape, block.mlp.experts_per_token
    fused = lin.get("gate_up") or lin["gate"]
    weights = {x.role: _adapted_weight(scope, x) for x in (fused, lin["down"])}
    order = tape.alloc(float(INDEX * INDICES * chosen))
    gathered = tape.op(z, width=z.width * chosen, itemsize=z.itemsize, saved=[order])
    both = _product(scope, gathered, fused, weights[fused.role], chosen)
    hidden = (_clamped_gate if block.attention.sinks else _gate)(scope, both, block.mlp.activation)
    down = _product(scope, hidden, lin["down"], weights["down"], chosen)
    tape.drop(hidden)
    itemsize = max(down.itemsize, scores.itemsize)
    weighted = tape.op(
        down,
        scores,
        width=down.width,
        itemsize=itemsize,
        saved=[down.buffer, scores.buffer],
        scratch=(down.width * (2 * itemsize - down.itemsize), 0.0),  # both gradients as made, before one is cast
    )
    restored = tape.op(weighted, width=weighted.width, itemsize=itemsize, saved=[order])
    tape.drop(weighted)
    tape.release(order)
    total = tape.op(restored, width=z.width, itemsize=itemsize, passes=[restored])
    tape.drop(restored)
    out = tape.cast(total, z.itemsize)
    tape.drop(total, gathered, down)  # what the function names stays until it returns
    for weight in weights.values():
        if weight is not None:
            tape.drop(weight)
    return out


def _adapted_weight(scope: Scope, lin: Linear) -> Tensor | None:
    """All experts' weights with the update added, in their dtype, where PEFT adapts them; A and B in it are kept."""
    rank = scope.ranks.get(lin.name, 0)
    if not rank:
        return None
    tape, regime = scope.tape, scope.regime
    itemsize = regime.base
    elements = float(rank * lin.copies * (lin.in_features + lin.out_features))
    narrowed = tape.alloc(0.0, elements * itemsize if regime.adapter != itemsize else 0.0)
    weight = tape.op(
        width=0.0,
        fixed=float(lin.weight_parameters),
        itemsize=itemsize,
        saved=[narrowed],
        trains=True,
        **ops.weight_gradient(scope, regime.adapter * elements, elements * itemsize),
    )
    tape.release(narrowed)
    return weight


def _product(scope: Scope, x: Tensor, lin: Linear, weight: Tensor | None, chosen: int) -> Tensor:
    """input.to(weight.dtype) times each token's expert."""
    tape, regime = scope.tape, scope.regime
    itemsize = regime.base if weight is None else weight.itemsize
    xc = tape.cast(x, itemsize)
    trains = scope.trains_weights
    all_experts = float(itemsize * lin.weight_parameters)
    gradient = ops.weight_gradient(scope, all_experts if trains else 0.0, 0.0)
    if not regime.grouped and not trains and weight is None:
        gradient["scratch"] = (0.0, all_experts)
    saved = [weight.buffer if weight is not None else PARAMETER]
    if trains or weight is not None or not regime.grouped:
        saved.append(xc.buffer)
    inputs = (xc,) if weight is None else (xc, weight)
    y = tape.op(
        *inputs, width=float(lin.out_features * chosen), itemsize=itemsize, saved=saved, trains=trains, **gradient
    )
    tape.drop(xc)
    return y


def _gate(scope: Scope, both: Tensor, activation: str) -> Tensor:
    """act(gate) * up, views of one tensor, which is dropped."""
    tape, inner = scope.tape, both.width / 2
    gate, up = ops.narrow(scope, both, inner), ops.narrow(scope, both, inner)
    tape.drop(both)
    acted = ops.activation(scope, gate, activation)
    tape.drop(gate)
    return ops.multiply(scope, acted, up)


def _clamped_gate(scope: Scope, both: Tensor, _: str) -> Tensor:
    """gpt-oss: (clamp(up) + 1) * gate * sigmoid(alpha * gate), gate clamped too (GptOssExperts._apply_gate)."""
    tape, inner, itemsize = scope.tape, both.width / 2, both.itemsize

    def clamped() -> Tensor:
        view = ops.narrow(scope, both, inner)
        out = tape.op(view, width=inner, itemsize=itemsize, saved=[both.buffer])
        tape.drop(view)
        return out

    gate, up = clamped(), clamped()
    tape.drop(both)
    scaled = tape.op(gate, width=inner, itemsize=itemsize)
    share = tape.op(scaled, width=inner, itemsize=itemsize)
    tape.save_output(share)
    tape.drop(scaled)
    glu = ops.multiply(scope, gate, share)
    raised = tape.op(up, width=inner, itemsize=itemsize, passes=[up])
    tape.drop(up)
    return ops.multiply(scope, raised, glu)
