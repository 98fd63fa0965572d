"""What sharding leaves on one card: shares of weights, gradients and states, and what is gathered to compute.

FSDP (torch/distributed/fsdp, one unit a decoder layer, the rest in the root unit): the root stays gathered from forward
to the end of backward; a layer is gathered while the next is prefetched. Under mixed precision accelerate keeps sharded
trainable parameters in fp32 (accelerator.py, "Upcasting the low precision parameters"), and a checkpointed unit keeps
its output beside its input: 2 h more bytes a token and layer, as the slopes of the fms rows over the batch show.
DeepSpeed ZeRO: bf16 parameters, fp32 masters and states divided from stage 1 on, gradients from 2, parameters from 3
(arXiv 1910.02054); its buckets of 5e8 elements are flat (runtime/zero/config.py reduce_bucket_size).
"""

from dataclasses import dataclass

from estimators.regime import Regime
from estimators.weights import linear_bytes
from profiles.model import Block, ModelSpec
from profiles.plan import Plan

PREFETCHED_LAYERS = 2  # the one at work and the next
ZERO_BUCKET_ELEMENTS = 500_000_000
FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Shares:
    """Divisors of what one card stores, and bytes that sharding adds."""

    weights: int
    gradients: int
    states: int
    gathered: float
    unsharded_gradients: float
    masters: float  # fp32 master copy, bytes per trained parameter on this card
    upcast: bool  # sharded weights are kept in fp32
    checkpoints: int = 1  # residual-sized tensors a layer keeps under gradient checkpointing


def shares(plan: Plan, model: ModelSpec, regime: Regime, *, trains_base: bool, trained: float) -> Shares:
    """Resolve a plan's sharding. `trained`: trained elements in all."""
    n, kind = plan.n_gpus, plan.sharding
    if kind in ("none", "ddp"):
        # DDP's buckets: gradients once more while they are reduced (gradient_as_bucket_view is off by default)
        extra = trained * regime.adapter if kind == "ddp" and not trains_base else 0.0
        extra = trained * regime.trained if kind == "ddp" and trains_base else extra
        return Shares(1, 1, 1, 0.0, extra, 0.0, upcast=False)
    layer = max(_layer_bytes(g.block, regime) for g in model.layers)
    root = _root_bytes(model, regime)
    if kind == "fsdp2":
        upcast = regime.autocast and trains_base
        return Shares(
            n, n, n,
            gathered=PREFETCHED_LAYERS * layer + root,
            unsharded_gradients=(layer + root) if trains_base else 0.0,
            masters=0.0, upcast=upcast, checkpoints=2,
        )  # fmt: skip
    bucket = min(ZERO_BUCKET_ELEMENTS, trained) * regime.compute
    return Shares(
        weights=n if kind == "zero3" else 1,
        gradients=n if kind in ("zero2", "zero3") else 1,
        states=n,
        gathered=PREFETCHED_LAYERS * layer + root if kind == "zero3" else 0.0,
        unsharded_gradients=2 * bucket,  # the bucket and its reduced copy
        masters=FP32_BYTES / n,
        upcast=False,
    )


def _layer_bytes(block: Block, regime: Regime) -> float:
    """One gathered layer, in the compute dtype (quantised weights travel as they are)."""
    if regime.quantized:
        return sum(linear_bytes(x, regime) for x in block.linears)
    return float(block.parameters * regime.compute)


def _root_bytes(model: ModelSpec, regime: Regime) -> float:
    total = sum(e.parameters for e in model.embeddings)
    if model.head is not None and not model.tie_word_embeddings:
        total += model.head.weight_parameters
    return float(total * regime.compute)
