"""FLOPs of a training step, exact: a multiply and an add are two.

Symbols: N matmul weights of the layers that a token passes through, H of the head, T tokens, s attended length,
h_q = num_heads * head_dim, L layers. Checked against NVIDIA Megatron-Bridge's printed rates (70B, H100): full
710e12 / 1638 tokens = 433 GFLOP a token = 6 (N + H) + 6 L h_q s / 2; LoRA 735e12 / 2643 = 278 = 4 (N + H).
"""

from collections.abc import Iterator
from typing import NamedTuple

from estimators.methods import Method
from estimators.methods.some_layers import SomeLayers
from profiles.model import Block, Linear, ModelSpec
from profiles.plan import Plan

FLOPS_PER_WEIGHT = 2  # a multiply and an add
ATTENTION_BACKWARD = 2.5  # FlashAttention-2 (arXiv 2307.08691, section 4.1): five matmuls against two
ATTENTION_BACKWARD_MODEL = 2.0  # without the recomputed scores: what counts as model FLOPs


class Passes(NamedTuple):
    """How often a matmul of the layers runs in a micro-batch: forward, recompute, by input and by weight backward."""

    forward: int
    recompute: int
    grad_input: int
    grad_weight: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.recompute + self.grad_input + self.grad_weight

    @property
    def walks(self) -> int:
        """Times that the host walks through the layer: forward, recomputation, backward."""
        return self.forward + self.recompute + self.grad_input

    @property
    def reads(self) -> int:
        """Those that read the weight: what a quantised weight has to be dequantised for."""
        return self.forward + self.recompute + self.grad_input


def layer_passes(method: Method, *, checkpointing: bool) -> Passes:
    """Passes over the base's weights: frozen ones have no gradient of their own (4 N instead of 6 N)."""
    return Passes(1, int(checkpointing), 1, int(method.trains_base))


def layer_runs(
    method: Method, model: ModelSpec, plan: Plan, *, checkpointing: bool
) -> Iterator[tuple[int, Block, Passes]]:
    """(layers, block, passes) in the model's order; below the first trained layer only the forward pass runs, but where
    checkpoints make the embedding's output require a gradient (`setup.layer_runs`)."""
    if isinstance(method, SomeLayers):
        only_trained = plan.platform == "llamafactory"
        reached = checkpointing and not only_trained
        for count, block, trained in method.split_layers(method.extended(model, plan), plan):
            reached = reached or trained
            backward = Passes(1, int(checkpointing and (trained or not only_trained)), 1, int(trained))
            if count:
                yield count, block, backward if reached else Passes(1, 0, 0, 0)
        return
    passes = layer_passes(method, checkpointing=checkpointing)
    for group in model.layers:
        yield group.count, group.block, passes


def active_weights(linear: Linear) -> int:
    """Weight elements that one token meets."""
    return linear.in_features * linear.out_features * linear.active


def layer_matmul_weights(model: ModelSpec) -> int:
    """N: matmul weights of all layers that one token passes through."""
    return sum(g.count * active_weights(x) for g in model.layers for x in g.block.linears)


def head_weights(model: ModelSpec) -> int:
    """H: weights of the head and of what else stands outside the layers (0 without a head)."""
    outside = sum(active_weights(x) for x in model.extra_linears)
    return outside + (0 if model.head is None else model.head.in_features * model.head.out_features)


def attended_length(length: float, *, causal: bool, window: int | None, extra_keys: int = 0) -> float:
    """Keys that a query meets on average: half of the sequence if causal, at most the sliding window.

    Causal with window w < s: mean of min(i, w) over i = 1..s, which is w - w^2 / (2 s).
    """
    if not causal:
        return length + extra_keys
    if window is not None and window < length:
        return window - window * window / (2 * length) + extra_keys
    return length / 2 + extra_keys


def attention_forward_flops(*, q_width: int, v_width: int, keys: float) -> float:
    """A token's scores and weighted sum in one layer: 2 (q_width + v_width) s."""
    return FLOPS_PER_WEIGHT * (q_width + v_width) * keys


def attention_flops_per_token(model: ModelSpec, length: float, *, extra_keys: int = 0) -> float:
    """All layers, forward: 4 L h_q s with s the mean attended length."""
    total = 0.0
    for group in model.layers:
        a = group.block.attention
        keys = attended_length(length, causal=a.causal, window=a.sliding_window, extra_keys=extra_keys)
        v_width = a.num_heads * a.v_head_dim
        total += group.count * attention_forward_flops(q_width=a.q_width, v_width=v_width, keys=keys)
    return total


def model_flops_per_token(model: ModelSpec, method: Method, length: float) -> float:
    """What the mathematics needs, without recomputation: 6 (N + H) + 3 A, or 4 (N + H) + 3 A if the base is frozen.

    A = `attention_flops_per_token`. The numerator of model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B).
    """
    passes = layer_passes(method, checkpointing=False)
    weights = layer_matmul_weights(model) + head_weights(model)
    attention = attention_flops_per_token(model, length)
    return FLOPS_PER_WEIGHT * weights * passes.total + attention * (1 + ATTENTION_BACKWARD_MODEL)
