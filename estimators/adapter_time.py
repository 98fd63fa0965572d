"""Time of what PEFT puts beside a linear: casts, thin products, rotations, dense updates (PEFT 0.21.2 tuners/)."""

from estimators.efficiency import Rates, elementwise_seconds
from estimators.flops import Passes
from estimators.regime import Regime
from estimators.work import BACKWARD_ELEMENTWISE, FP32, MicroBatch, stream_bytes
from profiles.model import Linear
from profiles.plan import Plan

# Kernels of one adapted linear's forward pass, by `Method.adapter`; counted in the layers' forward methods
LAUNCHES = {
    "lora": 7,
    "svd": 9,
    "dora": 19,
    "ia3": 4,
    "oft": 60,
    "loha": 14,
    "fourierft": 16,
    "lokr": 12,
    "vera": 11,
    "miss": 6,
}
LORA_FUSED_LAUNCHES = 3
DROPOUT_LAUNCHES = 2
DENSE_UPDATES = ("loha", "lokr", "fourierft")  # a whole weight matrix is made, and multiplied with, in every pass
DENSE_BYTES = 60.0  # an element: two fp32 factors made, multiplied, scaled, cast, and the like backward
ORTHOGONALITY_LAUNCHES = 46  # AdaLoRA, a linear and step: A A^T - I and its norm, sensitivities of three tensors


def add_adapter(
    out: MicroBatch, kind: str, linear: Linear, rank: int, layers: int, *, passes: Passes, regime: Regime, rates: Rates,
    plan: Plan, tokens: float,
) -> None:  # fmt: skip
    """Add an adapted linear's extra work in `layers` layers."""
    c, n_in, n_out = stream_bytes(regime), linear.in_features, linear.out_features
    forwards = passes.forward + passes.recompute
    units = layers * (forwards + BACKWARD_ELEMENTWISE)
    in_fp32 = regime.adapter == FP32 and not regime.autocast
    matmul = rates.matmul_fp32 if in_fp32 else rates.matmul
    n_bytes = units * tokens * token_bytes(kind, linear, rank, c=c, regime=regime, dropout=plan.lora_dropout > 0)
    flops = 0.0 if kind in ("ia3", "oft") else 2.0 * layers * tokens * rank * (n_in + n_out) * (forwards + 2)
    seconds = elementwise_seconds(rates, n_bytes, tensor_bytes=tokens * n_in * c) * rates.adapters
    if kind in DENSE_UPDATES:
        flops = 2.0 * layers * tokens * n_in * n_out * (forwards + 2)
        made = layers * (forwards + 1) * n_in * n_out * DENSE_BYTES
        n_bytes, seconds = n_bytes + made, seconds + made / rates.bandwidth
    elif kind == "dora":  # norm of W + B A in every forward pass
        made = layers * forwards * n_in * n_out * (5 * c + FP32)
        flops += 2.0 * layers * forwards * n_in * n_out * rank
        n_bytes, seconds = n_bytes + made, seconds + made / rates.bandwidth
    out.of("adapters").add(flops=flops, n_bytes=n_bytes, seconds=seconds + flops / matmul)
    launches = LAUNCHES[kind] + (DROPOUT_LAUNCHES if plan.lora_dropout else 0)
    if regime.fused_kernels and kind == "lora":
        launches = LORA_FUSED_LAUNCHES
    out.launches += layers * launches * passes.walks


def token_bytes(kind: str, linear: Linear, rank: int, *, c: int, regime: Regime, dropout: bool) -> float:
    """Bytes that one token moves in a forward pass.

    To the adapter's dtype and (under autocast) back, dropout, thin products in and out, scale, add to the base's
    result; Unsloth's fused LoRA leaves out casts and scaling. (IA)3 casts, multiplies and casts back one side.
    """
    n_in, n_out = linear.in_features, linear.out_features
    if kind == "ia3":
        return (2 * (c + FP32) + 2 * FP32) * (n_in if linear.role == "down" else n_out)
    fused = regime.fused_kernels and kind == "lora"
    cast = 0 if fused or regime.adapter == c else 2 * (c + regime.adapter) * n_in
    dropped = (2 * c + 1) * n_in if dropout else 0
    if kind == "oft":
        return cast + 2 * regime.adapter * n_in
    return c * (n_in + 2 * rank + n_out) + cast + dropped + (3 * c if fused else 5 * c) * n_out
