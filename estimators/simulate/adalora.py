"""What emitted projects do for AdaLoRA beside PEFT's layers (huggingface/adalora.py): the penalty that TRL's loss does
not read, and the scores that ranks are given by."""

from typing import Any

import torch


def penalty(model: torch.nn.Module) -> torch.Tensor:
    """The mean of ||A A^T - 1|| and ||B^T B - 1||, outside of autocast, as the emitted trainer adds it."""
    norms = []
    with torch.autocast("cuda", enabled=False):
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                product = p @ p.T if "lora_A" in name else p.T @ p
                norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product)).to(product)))
        return torch.stack(norms).mean()


def update_scores(model: Any) -> list[torch.Tensor]:
    """PEFT's rank allocator looks at weights and gradients after the optimizer's step. Returns all that it keeps."""
    allocator = model.base_model.rankallocator
    allocator.update_ipt(model.base_model.model)
    return [x for kept in (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc) for x in kept.values()]
