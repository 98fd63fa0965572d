"""The optimizer that a plan's name stands for, as transformers' Trainer would make it (trainer_optimizer.py, 5.23)."""

from typing import Any

import torch

from estimators.simulate.low_rank import block_optimizer, projected_optimizer
from estimators.simulate.muon import Muon
from profiles.errors import UnsupportedError
from profiles.plan import QUANTIZED, Plan

BNB = {  # name: (class in bitsandbytes.optim, is_paged, optim_bits)
    "adamw_8bit": ("AdamW", False, 8),
    "adamw_bnb_8bit": ("AdamW", False, 8),
    "paged_adamw_8bit": ("AdamW", True, 8),
    "paged_adamw_32bit": ("AdamW", True, 32),
    "lion_32bit": ("Lion", False, 32),
    "lion_8bit": ("Lion", False, 8),
    "paged_lion_32bit": ("Lion", True, 32),
    "paged_lion_8bit": ("Lion", True, 8),
}
LOW_RANK = ("galore", "apollo", "badam")  # their packages import it for classes that are not used here


def uses_bitsandbytes(plan: Plan) -> bool:
    """Whether weights or optimizer states are bitsandbytes', or a package that is imported needs it."""
    return plan.quantization in QUANTIZED or plan.optimizer in BNB or plan.method in LOW_RANK


def make_optimizer(plan: Plan, model: torch.nn.Module) -> Any:
    """Build the optimizer over the model's trainable parameters.

    Raises:
        UnsupportedError: no such optimizer here.
    """
    parameters: Any = [p for p in model.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": plan.learning_rate or 1e-4, "weight_decay": plan.weight_decay}
    name = plan.optimizer
    if plan.method in ("galore", "apollo"):
        return projected_optimizer(plan, model, settings)
    if plan.method == "badam":
        return block_optimizer(make_optimizer(plan.replace(method="full"), model), model)
    if name == "muon":
        return Muon(model.named_parameters())
    if name == "adamw_torch":
        return torch.optim.AdamW(parameters, **settings)
    if name == "adamw_torch_fused":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    if name == "adamw_torch_forloop":
        return torch.optim.AdamW(parameters, foreach=False, **settings)
    if name == "sgd":
        return torch.optim.SGD(parameters, **settings)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, **settings)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, scale_parameter=False, relative_step=False, **settings)
    if name in BNB:
        return _bitsandbytes(*BNB[name], parameters, settings, model)
    raise UnsupportedError(f"the simulated tier does not know the optimizer {name!r}")


def _bitsandbytes(
    kind: str, paged: bool, bits: int, parameters: Any, settings: dict[str, Any], model: torch.nn.Module
) -> Any:
    """The Trainer keeps embeddings at 32 bits under an 8-bit optimizer."""
    import bitsandbytes.optim as optim

    optimizer = getattr(optim, kind)(parameters, is_paged=paged, optim_bits=bits, **settings)
    if bits == 8:
        manager = optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer
