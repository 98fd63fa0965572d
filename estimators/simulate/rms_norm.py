"""RMSNorm in one kernel on fake tensors: what it allocates, keeps and overwrites.

Liger's (liger-kernel 0.8.5 ops/rms_norm.py) and Unsloth's (2026.10.7 kernels/rms_layernorm.py Fast_RMS_Layernorm) are
alike in this. Modelled, not traced: Triton's kernels allocate nothing themselves.
"""

from typing import Any

import torch


class RmsNorm(torch.autograd.Function):  # type: ignore[misc]
    """Keeps the input and one statistic a row; may write its gradient over the incoming one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, in_place: bool) -> torch.Tensor:
        """Normed input, in a new tensor of its dtype."""
        x = x.contiguous()
        rows = x.view(-1, x.shape[-1])
        out = torch.empty_like(rows)
        statistic = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
        ctx.in_place = in_place
        ctx.save_for_backward(rows, weight, statistic)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the input and, where it is trained, of the weight."""
        grad = grads[0].contiguous()
        _, weight, _ = ctx.saved_tensors
        out = grad if ctx.in_place else torch.zeros_like(grad)
        return out, torch.empty_like(weight) if ctx.needs_input_grad[1] else None, None


def rms_norm(module: Any, x: torch.Tensor, *, in_place: bool) -> torch.Tensor:
    """What stands for the forward of `module`."""
    out: torch.Tensor = RmsNorm.apply(x, module.weight, in_place)
    return out
