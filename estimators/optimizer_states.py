"""Bytes of optimizer states, and what the step itself needs beside them."""

from math import sqrt

from profiles.scheme import OptimizerSpec

FP32_BYTES = 4


def state_bytes(
    optimizer: OptimizerSpec, *, elements: int, tensors: int, itemsize: int, embedding: bool = False
) -> float:
    """States of `tensors` parameters of `elements` each, in bytes on the card.

    Adam keeps two tensors of the parameter's own dtype (torch/optim/adamw.py: zeros_like(p)); bitsandbytes' 8-bit
    optimizers keep a byte an element and one fp32 absmax a block, but fp32 for tensors below min_8bit_size and, under
    transformers' Trainer, for embeddings; Adafactor
    keeps rows plus columns, taken here as a square matrix.
    """
    total = elements * tensors
    if optimizer.paged:
        return 0.0  # managed memory: it gives way before the allocator fails (bitsandbytes optim/optimizer.py)
    if optimizer.factored:
        return tensors * 2 * sqrt(elements) * FP32_BYTES
    if optimizer.state_bytes is None:
        return float(total * optimizer.state_tensors * itemsize)
    if elements < optimizer.small_tensor_limit or (embedding and optimizer.embeddings_fp32):
        return float(total * optimizer.state_tensors * FP32_BYTES)
    absmax = optimizer.state_tensors * FP32_BYTES / optimizer.block_size if optimizer.block_size else 0.0
    return total * (optimizer.state_bytes + absmax)


def step_temporary_bytes(
    optimizer: OptimizerSpec, *, trained_bytes: float, largest_bytes: float, largest_itemsize: int
) -> float:
    """foreach AdamW makes sqrt(exp_avg_sq) of all parameters at once; fused of none; Adafactor works in fp32, one
    parameter at a time."""
    if optimizer.fp32_temporaries:
        copies = 2 if largest_itemsize < FP32_BYTES else 0
        return (optimizer.fp32_temporaries + copies) * FP32_BYTES * largest_bytes / largest_itemsize
    if optimizer.step_temporary >= 1:
        return optimizer.step_temporary * trained_bytes
    return optimizer.step_temporary * largest_bytes
