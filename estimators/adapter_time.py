"""Time of what PEFT puts beside a linear: casts, thin products, rotations, dense updates (PEFT 0.21.2 tuners/)."""

from dataclasses import replace
from typing import NamedTuple

from estimators.efficiency import Rates, elementwise_seconds, matmul_seconds
from estimators.flops import Passes
from estimators.regime import Regime
from estimators.work import BACKWARD_ELEMENTWISE, BARE_LAUNCH, FP32, MicroBatch, stream_bytes
from profiles.model import Linear
from profiles.plan import Plan


class Launches(NamedTuple):
    """Kernels that one adapted linear adds: those of a forward pass, those of a backward pass."""

    forward: int
    backward: int


# By `Method.adapter`, as dispatched by PEFT 0.21.2 around one bf16 linear under autocast, the linear's own product left
# out: with adapters in fp32, whose inputs and weights are cast, and with adapters in the base's dtype
LAUNCHES = {
    "lora": (Launches(8, 9), Launches(4, 5)),
    "svd": (Launches(11, 20), Launches(7, 14)),
    "dora": (Launches(23, 22), Launches(15, 14)),
    "ia3": (Launches(3, 5), Launches(2, 3)),
    "oft": (Launches(23, 32), Launches(14, 20)),
    "loha": (Launches(11, 11), Launches(7, 11)),
    "fourierft": (Launches(10, 9), Launches(9, 8)),
    "lokr": (Launches(8, 10), Launches(5, 7)),
    "vera": (Launches(11, 15), Launches(5, 8)),
    "miss": (Launches(6, 6), Launches(3, 3)),
}
LORA_FUSED_LAUNCHES = Launches(4, 9)  # Unsloth 2026.10.9, as traced; its backward pass is Python, too
DROPOUT_LAUNCHES = 1  # native_dropout, and its backward
DENSE_UPDATES = ("loha", "lokr", "fourierft")  # a whole weight matrix is made, and multiplied with, in every pass
DENSE_BYTES = 60.0  # an element: two fp32 factors made, multiplied, scaled, cast, and the like backward
# AdaLoRA, a linear and step, in forward kernels: 46, of which A A^T - I and its norms forward (11), all others bare
ORTHOGONALITY_LAUNCHES = 11 + 35 * BARE_LAUNCH


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
    if kind == "oft":  # one thin product a block
        blocks = n_in // rank
        itemsize = FP32 if in_fp32 else regime.compute
        once = matmul_seconds(
            replace(rates, matmul=matmul), tokens=tokens * blocks, n_in=rank, n_out=rank, itemsize=itemsize,
            weights_read=blocks,
        )  # fmt: skip
        out.of("adapters").add(
            flops=2.0 * layers * tokens * n_in * rank * (forwards + 2), seconds=layers * once * (forwards + 2)
        )
    if kind in DENSE_UPDATES:
        flops = 2.0 * layers * tokens * n_in * n_out * (forwards + 2)
        made = layers * (forwards + 1) * n_in * n_out * DENSE_BYTES
        n_bytes, seconds = n_bytes + made, seconds + made / rates.bandwidth
    elif kind == "dora":  # norm of W + B A in every forward pass
        made = layers * forwards * n_in * n_out * (5 * c + FP32)
        flops += 2.0 * layers * forwards * n_in * n_out * rank
        n_bytes, seconds = n_bytes + made, seconds + made / rates.bandwidth
    out.of("adapters").add(flops=flops, n_bytes=n_bytes, seconds=seconds + flops / matmul)
    kernels = adapter_launches(kind, plan, regime)
    each = 1.0 if regime.fused_layers else BARE_LAUNCH
    out.launches += layers * (kernels.forward * forwards + each * kernels.backward * passes.grad_input)


def adapter_launches(kind: str, plan: Plan, regime: Regime) -> Launches:
    """What the host launches for one adapted linear."""
    if regime.fused_kernels and kind == "lora":
        return LORA_FUSED_LAUNCHES
    casts, plain = LAUNCHES[kind]
    kernels = plain if regime.adapter == stream_bytes(regime) else casts
    dropout = DROPOUT_LAUNCHES if plan.lora_dropout else 0
    return Launches(kernels.forward + dropout, kernels.backward + dropout)


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
    if kind == "oft":  # made contiguous, then one product a block
        return cast + 4 * regime.adapter * n_in
    # DoRA's magnitudes widen both products and what is added to them: tuners/lora/dora.py DoraLinearLayer.forward
    outputs = 10 * regime.adapter if kind == "dora" else 3 * c if fused else 5 * c
    return c * (n_in + 2 * rank + n_out) + cast + dropped + outputs * n_out
