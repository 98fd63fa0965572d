"""What the backward pass of an embedding needs beside its dense gradient."""

FEW_INDICES = 3072  # aten/native/cuda/Embedding.cu embedding_dense_backward_cuda: up to here a kernel without buffers
ROWS_PER_THREAD = 10  # EmbeddingBackwardKernel.cu NROWS_PER_THREAD


def embedding_sums(tokens: int, rows: int, width: int) -> int:
    """Bytes of the partial sums, in fp32, and of the int64 indices that sort `tokens` by row of the table.

    EmbeddingBackwardKernel.cu embedding_backward_cuda_kernel: max_partial_segment rows of grad_weight_per_segment.
    """
    if tokens <= FEW_INDICES:
        return 0
    segments = min(tokens, rows)
    partial = tokens // ROWS_PER_THREAD + segments
    return 4 * partial * width + 8 * (3 * tokens + 2 * segments + partial)
