"""Unsloth's loss on fake tensors: head and cross-entropy chunk by chunk, gradients taken in the forward.

Modelled from unsloth_zoo 2026.10.7, fused_losses/cross_entropy_loss.py (UnslothFusedLoss), its chunks as torch.compile
runs them: logits and their gradient in the product's dtype, nothing else of that size (seen on an H200).
"""

from typing import Any

import torch

from estimators.unsloth_loss import chunk_rows

Batch = dict[str, torch.Tensor]


def unsloth_loss(base: Any, batch: Batch, *, budget: float, equal: bool) -> torch.Tensor:
    """Loss of `batch`. budget and equal: see `chunk_rows`."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden = base.base_model(**inputs, use_cache=False)[0]
    weight = base.get_output_embeddings().weight
    states = hidden.reshape(-1, hidden.shape[-1])
    of_head = 2.0 * weight.numel() * weight.element_size() if weight.requires_grad else 0.0
    rows = chunk_rows(
        tokens=states.shape[0],
        vocab_size=weight.shape[0],
        budget=budget,
        fixed=states.numel() * states.element_size() + of_head,
        equal=equal,
    )
    loss: torch.Tensor = _CrossEntropy.apply(states, weight, rows)
    return loss


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, rows: int) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        half = weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast("cuda", enabled=False):
            for start in range(0, hidden.shape[0], rows):
                part = hidden[start : start + rows].to(dtype)
                logits = torch.mm(part, half.t())
                gradient = torch.empty_like(logits)
                del logits
                grad_hidden[start : start + rows] = torch.mm(gradient, half)
                if grad_weight is not None:
                    grad_weight.add_(torch.mm(gradient.t(), part))
                del gradient
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return torch.empty_like(grad_hidden), None if grad_weight is None else torch.empty_like(grad_weight), None
