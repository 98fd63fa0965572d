"""Unsloth's loss on fake tensors: the head's product and cross-entropy tile by tile, gradients taken in the forward.

Modelled from unsloth_zoo 2026.10.9, fused_losses/fused_linear.py (_ce_impl, _tiled_forward, _ce_backward), its Triton
kernels left out.
"""

from typing import Any

import torch

from estimators.unsloth_loss import SPLIT_COLUMNS, STATISTICS, LossTile, loss_tile

Batch = dict[str, torch.Tensor]


def unsloth_loss(base: Any, batch: Batch, *, tiled_from: int) -> torch.Tensor:
    """Loss of `batch`; the last position of each row has no label, so hidden states are picked row by row."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden = base.base_model(**inputs, use_cache=False)[0]
    weight = base.get_output_embeddings().weight
    targets = torch.cat((batch["labels"][..., 1:], batch["labels"][..., :1]), dim=-1).reshape(-1)
    rows = hidden.reshape(-1, hidden.shape[-1])
    tile = loss_tile(
        tokens=rows.shape[0],
        hidden_size=rows.shape[1],
        vocab_size=weight.shape[0],
        tiled_from=tiled_from,
        trains_head=weight.requires_grad,
    )
    loss: torch.Tensor = _CrossEntropy.apply(rows, weight, targets, tile)
    return loss


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, tile: LossTile
    ) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
        index = torch.empty_like(targets)
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        half = weight.to(dtype)
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        walk = _tiled if tile.tiled else _by_rows
        with torch.autocast("cuda", enabled=False):
            walk(hidden, half, index, tile, grad_hidden, grad_weight)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.double().sum().float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return torch.empty_like(grad_hidden), None if grad_weight is None else torch.empty_like(grad_weight), None, None


def _buffer(tile: LossTile, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(tile.rows, tile.columns, dtype=torch.float32, device=like.device)


def _by_rows(
    hidden: torch.Tensor, weight: torch.Tensor, index: torch.Tensor, tile: LossTile,
    grad_hidden: torch.Tensor, grad_weight: torch.Tensor | None,
) -> None:  # fmt: skip
    buffer = _buffer(tile, hidden)
    for start in range(0, hidden.shape[0], tile.rows):
        part = hidden.index_select(0, index[start : start + tile.rows]).to(weight.dtype)
        gradient = buffer.view(weight.dtype)[: part.shape[0], : weight.shape[0]]
        of_hidden = torch.empty(part.shape, dtype=torch.float32, device=part.device)  # mm with an fp32 result
        grad_hidden.index_copy_(0, index[start : start + tile.rows], of_hidden.to(grad_hidden.dtype))
        if grad_weight is not None:
            grad_weight.addmm_(gradient.t().to(grad_weight.dtype), part.to(grad_weight.dtype))


def _tiled(
    hidden: torch.Tensor, weight: torch.Tensor, index: torch.Tensor, tile: LossTile,
    grad_hidden: torch.Tensor, grad_weight: torch.Tensor | None,
) -> None:  # fmt: skip
    buffer = _buffer(tile, hidden)
    sums = torch.empty(tile.rows, hidden.shape[1], dtype=torch.float32, device=hidden.device)
    splits = -(-weight.shape[0] // SPLIT_COLUMNS)
    for start in range(0, hidden.shape[0], tile.rows):
        part = hidden.index_select(0, index[start : start + tile.rows]).to(weight.dtype)
        statistics = torch.empty(splits * part.shape[0], STATISTICS, dtype=torch.uint8, device=part.device)
        del part, statistics
    del buffer, sums
