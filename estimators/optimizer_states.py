"""Bytes of optimizer states, and what the step itself needs beside them."""

from math import sqrt

from profiles.scheme import OptimizerSpec

FP32_BYTES = 4
NEWTON_SCHULZ_BYTES = 8  # an element: X, a X, B X and their sum in bf16 (LLaMA-Factory third_party/muon/muon.py)


def state_bytes(
    optimizer: OptimizerSpec, *, elements: int, tensors: int, itemsize: int, embedding: bool = False, columns: int = 0
) -> float:
    """States of `tensors` parameters of `elements` each, in bytes on the card.

    Adam keeps two tensors of the parameter's own dtype (torch/optim/adamw.py: zeros_like(p)); bitsandbytes' 8-bit
    optimizers keep a byte an element and one fp32 absmax a block, but fp32 for tensors below min_8bit_size and, under
    transformers' Trainer, for embeddings; Adafactor keeps rows plus columns, taken here as a square matrix; Muon keeps
    one tensor of a matrix inside the layers (`columns` > 0) and Adam's two of everything else.
    """
    total = elements * tensors
    if optimizer.paged:
        return 0.0  # managed memory: it gives way before the allocator fails (bitsandbytes optim/optimizer.py)
    if optimizer.factored:
        return tensors * 2 * sqrt(elements) * FP32_BYTES
    if columns and optimizer.matrix_state_tensors is not None:
        return float(total * optimizer.matrix_state_tensors * itemsize)
    if optimizer.state_bytes is None:
        return float(total * optimizer.state_tensors * itemsize)
    if elements < optimizer.small_tensor_limit or (embedding and optimizer.embeddings_fp32):
        return float(total * optimizer.state_tensors * FP32_BYTES)
    absmax = optimizer.state_tensors * FP32_BYTES / optimizer.block_size if optimizer.block_size else 0.0
    return total * (optimizer.state_bytes + absmax)


def step_temporary_bytes(optimizer: OptimizerSpec, *, trained_bytes: float, sizes: list[tuple[int, int, int]]) -> float:
    """What a step makes on top: foreach of all parameters at once, a loop of the largest.

    foreach AdamW makes sqrt(exp_avg_sq) of all parameters, the fused kernel nothing, the for-loop sqrt(exp_avg_sq) and
    its quotient of one parameter; Adafactor an fp32 gradient, an fp32 parameter where those are in 16 bits, the update
    and its negative. `sizes`: (elements, bytes an element, columns) of the trained tensors.
    """
    largest = 0.0
    for elements, itemsize, columns in sizes:
        if optimizer.matrix_state_tensors is not None and columns:
            smaller = min(columns, elements // columns)
            own = elements * (itemsize + NEWTON_SCHULZ_BYTES) + 4.0 * smaller * smaller
        else:
            own = optimizer.loop_temporary * elements * itemsize
            if optimizer.works_in_fp32:
                own = (optimizer.loop_temporary + (2 if itemsize < FP32_BYTES else 0)) * elements * float(FP32_BYTES)
        largest = max(largest, own)
    return optimizer.step_temporary * trained_bytes + largest
