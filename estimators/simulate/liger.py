"""Kernels of Liger in transformers' own layers, on fake tensors: what each allocates, keeps and overwrites.

Modelled from liger-kernel 0.8.5 (ops/rope.py, ops/swiglu.py, ops/geglu.py, transformers/swiglu.py),
not traced: the kernels are Triton's, which allocate nothing themselves. All make contiguous what they are given.
"""

import sys
from functools import partial
from typing import Any

import torch

from estimators.regime import Regime
from estimators.simulate.rms_norm import rms_norm


class Rope(torch.autograd.Function):  # type: ignore[misc]
    """Turns queries and keys where they lie, and their gradients."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q and k of (batch, heads, length, head_dim), views of the projections."""
        return _as_it_lies(q), _as_it_lies(k)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same tensors."""
        return tuple(map(_as_it_lies, grads))


def _as_it_lies(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


class Gate(torch.autograd.Function):  # type: ignore[misc]
    """act(gate) * up: keeps both; backward writes both gradients over them."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """The product, in a new tensor."""
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Both gradients."""
        _ = grads[0].contiguous()
        gate, up = ctx.saved_tensors
        return gate, up


def patch_layers(model: Any, regime: Regime) -> None:
    """Give a built model's layers the kernels that `regime` names."""
    for module in model.modules():
        kind = type(module).__name__
        if "norm" in regime.fused_ops and kind.endswith("RMSNorm"):
            module.forward = partial(rms_norm, module, in_place=regime.norms_in_place)
        if "activation" in regime.fused_ops and hasattr(module, "down_proj"):
            if hasattr(module, "gate_proj"):
                module.forward = partial(_gated, module)
            elif isinstance(getattr(module, "gate_up_proj", None), torch.nn.Module):
                module.forward = partial(_chunked, module)
        modeling = sys.modules[type(module).__module__]
        if "rotary" in regime.fused_ops and kind.endswith("Attention") and hasattr(modeling, "apply_rotary_pos_emb"):
            modeling.apply_rotary_pos_emb = _rotated  # type: ignore[attr-defined]


def _rotated(q: torch.Tensor, k: torch.Tensor, *_: Any, **__: Any) -> Any:
    return Rope.apply(q, k)


def _gated(module: Any, x: torch.Tensor) -> Any:
    return module.down_proj(Gate.apply(module.gate_proj(x), module.up_proj(x)))


def _chunked(module: Any, x: torch.Tensor) -> Any:
    both = module.gate_up_proj(x)
    gate, both = both.chunk(2, dim=-1)
    return module.down_proj(Gate.apply(gate, both))
