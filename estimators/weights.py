"""Bytes of the base model's weights, as the platform keeps them on the card."""

from estimators.regime import Regime
from profiles.model import Linear, ModelSpec

FP32_BYTES = 4
ABSMAX_BLOCK = 64  # bitsandbytes 4-bit blocksize (functional.py quantize_4bit)
NESTED_BLOCK = 256  # the blocksize of the absmax values under double quantisation
CODE_TABLES = 512  # each small tensor of a quant state (16 codes, offset) takes one allocator block
NESTED_TABLES = 1024 + 512  # the 256-entry code of the nested state, and its offset


def is_quantized(linear: Linear, regime: Regime) -> bool:
    """transformers 5 (integrations/bitsandbytes.py) replaces nn.Linear, no subclass of it, and not the head; fused
    experts are bare tensors, which it leaves as they are and Unsloth's own checkpoints store in 4 bits."""
    if not regime.quantized or linear.role == "head":
        return False
    if linear.kind == "parameter":
        return regime.fused_kernels and regime.quantized == 4
    return linear.kind != "subclass"


def linear_bytes(linear: Linear, regime: Regime) -> float:
    """Stored bytes of one linear, all copies.

    4-bit: half a byte a weight, one fp32 absmax per 64 weights; nested: absmax as one byte, with an fp32 scale per 256
    of them (QLoRA, arXiv 2305.14314, section 3). int8: a byte a weight, an fp32 scale a row (LLM.int8()).
    """
    weights = linear.weight_parameters
    bias = linear.bias_parameters * regime.base
    if not is_quantized(linear, regime):
        return weights * regime.base + bias
    if regime.quantized == 8:
        return weights + FP32_BYTES * linear.out_features * linear.copies + bias
    blocks = weights / ABSMAX_BLOCK
    if regime.nested:
        return weights / 2 + blocks + FP32_BYTES * blocks / NESTED_BLOCK + bias + CODE_TABLES + NESTED_TABLES
    return weights / 2 + FP32_BYTES * blocks + bias + CODE_TABLES


def base_weight_bytes(model: ModelSpec, regime: Regime) -> float:
    """All weights of the base model in bytes, and its constants. A tied head costs nothing of its own."""
    total = float(sum(e.parameters for e in model.embeddings) + sum(n.parameters for n in model.extra_norms))
    total = (total + model.other_parameters) * regime.base
    for group in model.layers:
        block = group.block
        linears = sum(linear_bytes(x, regime) for x in block.linears)
        rest = (sum(n.parameters for n in block.norms) + block.other_parameters) * regime.base
        total += group.count * (linears + rest + block.buffer_bytes)
    total += sum(linear_bytes(x, regime) for x in model.extra_linears)
    if model.head is not None:
        own = 0 if model.tie_word_embeddings else model.head.weight_parameters
        total += (own + model.head.bias_parameters) * regime.base
    return total


def largest_load_bytes(model: ModelSpec, regime: Regime, *, prepared: bool) -> float:
    """What loading takes beside the weights: it quantises one at a time from its 16-bit form, then k-bit preparation
    (`prepared`) widens what was left in 16 bits, one at a time; sharding may narrow that again (`regime.base`)."""
    if not regime.quantized:
        return 0.0
    if prepared and regime.compute < FP32_BYTES:
        left = _left_in_half(model, regime)
        return float(max(left)) * regime.compute + float(sum(left)) * (FP32_BYTES - regime.base)
    shapes = (x.in_features * x.out_features for g in model.layers for x in g.block.linears)
    return float(max(shapes)) * regime.compute


def _left_in_half(model: ModelSpec, regime: Regime) -> list[int]:
    """Elements of each large tensor that is not quantised: embedding, head and a layer's fused experts."""
    left = [e.parameters for e in model.embeddings]
    if model.head is not None and not model.tie_word_embeddings:
        left.append(model.head.weight_parameters)
    for group in model.layers:
        left += [x.weight_parameters for x in group.block.linears if not is_quantized(x, regime)] * group.count
    return left
