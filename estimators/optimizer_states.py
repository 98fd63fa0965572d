"""Bytes of optimizer states, and what the step itself needs beside them."""

from math import sqrt

from profiles.scheme import OptimizerSpec

FP32_BYTES = 4
PAGED_MIN_ELEMENTS = 100_000  # bitsandbytes optim/optimizer.py get_state_buffer: smaller states are plain tensors
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
    absmax = optimizer.state_tensors * FP32_BYTES / optimizer.block_size if optimizer.block_size else 0.0
    if optimizer.paged and elements >= PAGED_MIN_ELEMENTS and not (embedding and optimizer.embeddings_fp32):
        return total * absmax  # the rest is managed memory, which gives way before the allocator fails
    if optimizer.paged and elements >= PAGED_MIN_ELEMENTS:
        return 0.0
    if optimizer.factored:
        return tensors * 2 * sqrt(elements) * FP32_BYTES
    if columns and optimizer.matrix_state_tensors is not None:
        return float(total * optimizer.matrix_state_tensors * itemsize)
    if optimizer.state_bytes is None:
        return float(total * optimizer.state_tensors * itemsize)
    if elements < optimizer.small_tensor_limit or (embedding and optimizer.embeddings_fp32):
        return float(total * optimizer.state_tensors * FP32_BYTES)
    return total * (optimizer.state_bytes + absmax)


def step_temporary_bytes(
    optimizer: OptimizerSpec, *, trained_bytes: float, sizes: list[tuple[int, int, int, int]]
) -> float:
    """What a step makes on top: foreach of all parameters at once, a loop of the largest.

    foreach AdamW makes sqrt(exp_avg_sq) of all parameters, the fused kernel nothing, the for-loop sqrt(exp_avg_sq) and
    its quotient of one parameter; Adafactor an fp32 gradient, an fp32 parameter where those are in 16 bits, the update
    and its negative, and holds the last parameter's update, as large within the layers (gate, up and down); Muon the
    last matrix's update while AdamW's part begins. `sizes`: (elements, how many, bytes an element, columns) of the
    trained tensors.
    """
    largest = 0.0
    is_muon = optimizer.matrix_state_tensors is not None
    update = max((float(n * itemsize) for n, _, itemsize, columns in sizes if columns), default=0.0) if is_muon else 0.0
    for elements, tensors, itemsize, columns in sizes:
        if is_muon and columns:
            smaller = min(columns, elements // columns)
            own = elements * (itemsize + NEWTON_SCHULZ_BYTES) + 4.0 * smaller * smaller
        elif optimizer.works_in_fp32:
            copies = (2 if itemsize < FP32_BYTES else 0) + (1 if tensors > 1 else 0)
            own = (optimizer.loop_temporary + copies) * elements * float(FP32_BYTES)
        else:
            own = optimizer.loop_temporary * elements * itemsize + update
        largest = max(largest, own)
    return optimizer.step_temporary * trained_bytes + largest
