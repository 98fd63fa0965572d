"""Unsloth's autograd functions on fake tensors: what each allocates, keeps for backward and overwrites.

Modelled from the sources of unsloth 2026.10.7, not traced: the kernels are Triton's, which allocate nothing themselves,
so their launches are left out and everything around them is as there. kernels/rope_embedding.py Fast_RoPE_Embedding_QK
and _QK_Positions; qk_norm_rope.py Fast_QK_Norm_RoPE; fast_lora.py LoRA_MLP, LoRA_QKV, LoRA_W; utils.py matmul_lora,
fast_dequantize. Its RMSNorm is rms_norm.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_in_autocast: Callable[[Any], Any] = torch.amp.custom_fwd(device_type="cuda")
_as_forward: Callable[[Any], Any] = torch.amp.custom_bwd(device_type="cuda")
_scratch: dict[torch.dtype, torch.Tensor] = {}  # utils.py _SCRATCH: one dequantised weight, kept for good


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear with its adapter (utils.py get_lora_parameters): W, its quant state, A, B, scaling, dropout."""

    weight: torch.Tensor
    state: Any
    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    dropout: float


class Rope(torch.autograd.Function):  # type: ignore[misc]
    """Rotates projections where they lie; with position ids (packing) into new tensors. Backward always makes new."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, indexed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k of (batch, heads, length, head_dim), views of the projections."""
        if indexed:
            return torch.empty_like(q), torch.empty_like(k)
        return q.view(q.shape), k.view(k.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """New gradients of both."""
        return torch.empty_like(grads[0]), torch.empty_like(grads[1]), None


class NormRope(torch.autograd.Function):  # type: ignore[misc]
    """Qwen3's head norms and rotary in one kernel: keeps q and k as projected, and a statistic a head."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k of (batch, length, heads, head_dim)."""
        out = torch.empty_like(q).transpose(1, 2), torch.empty_like(k).transpose(1, 2)
        statistics = [torch.empty(x.shape[:3], dtype=torch.float32, device=x.device) for x in (q, k)]
        ctx.save_for_backward(q, k, *statistics)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """New gradients of both."""
        q, k, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k)


def dequantize(weight: torch.Tensor, state: Any, *, shared: bool) -> torch.Tensor:
    """fast_dequantize: the weight itself, or its dense copy, in the buffer that all layers share or in a new one.

    The double quantisation's absmax is decoded inside the kernel (nf4.py): no buffer of its own.
    """
    if state is None:
        return weight
    rows, columns = state.shape
    if not shared:
        return torch.empty((rows, columns), dtype=state.dtype, device=weight.device)
    buffer = _scratch.get(state.dtype)
    if buffer is None or buffer.numel() < rows * columns:
        buffer = torch.empty(rows * columns, dtype=state.dtype, device=weight.device)
        _scratch[state.dtype] = buffer
    return buffer[: rows * columns].view(rows, columns)


def shared_weights() -> list[torch.Tensor]:
    """The buffers that outlive every layer."""
    return list(_scratch.values())


def _multiply(x: torch.Tensor, p: Projection, shared: bool = True) -> torch.Tensor:
    """matmul_lora without its low-rank part."""
    return torch.matmul(x, dequantize(p.weight, p.state, shared=shared).t())


def _project(x: torch.Tensor, p: Projection, dropped: torch.Tensor) -> torch.Tensor:
    """X W^T + s (dropout(X) A^T) B^T, the second product added in place; without the shared buffer under dropout."""
    out = _multiply(x, p, shared=p.dropout == 0)
    low = torch.matmul(dropped, p.a.to(x.dtype).t())
    out.addmm_(low, p.b.to(x.dtype).t(), alpha=p.scaling)
    return out


def _drop(x: torch.Tensor, p: Projection) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.native_dropout(x, p.dropout, True) if p.dropout else (x, None)


def _replay(x: torch.Tensor, mask: torch.Tensor | None, p: Projection) -> torch.Tensor:
    if mask is None:
        return x
    out: torch.Tensor = torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - p.dropout))
    return out


def _adapter_gradients(
    x: torch.Tensor, grad: torch.Tensor, grad_b: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dA = X^T (dY B), dB = (A X^T) dY, both in the compute dtype."""
    d_a, d_b = torch.empty_like(a), torch.empty_like(b)
    d_a.addmm_(x.t(), grad_b, beta=0)
    d_b.addmm_(a.t() @ x.t(), grad, beta=0)
    return d_a.t(), d_b.t()


def _add_low_rank(
    out: torch.Tensor, grad_b: torch.Tensor, a: torch.Tensor, mask: torch.Tensor | None, p: Projection
) -> None:
    if mask is None:
        out.addmm_(grad_b, a.t())
    else:
        out.add_(_replay(grad_b @ a.t(), mask, p))


def _halves(p: Projection, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return p.a.to(dtype).t(), p.b.to(dtype).t()


class LoraLinears(torch.autograd.Function):  # type: ignore[misc]
    """LoRA_QKV (three projections of one input, whose gradient overwrites that input) and LoRA_W (one)."""

    @staticmethod
    @_in_autocast
    def forward(ctx: Any, x: torch.Tensor, projections: tuple[Projection, ...], *ab: torch.Tensor) -> Any:
        """Keeps the input, the adapters' weights and the masks of a dropout."""
        rows = x.reshape(-1, x.shape[-1])
        outs, masks = [], []
        for p in projections:
            dropped, mask = _drop(rows, p)
            outs.append(_project(rows, p, dropped).view(*x.shape[:-1], -1))
            masks.append(mask)
            del dropped
        ctx.projections = projections
        ctx.save_for_backward(x, *ab, *masks)
        return tuple(outs)

    @staticmethod
    @_as_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the adapters, then of the input, projection by projection."""
        projections = ctx.projections
        x, *rest = ctx.saved_tensors
        masks = rest[2 * len(projections) :]
        flat = [g.reshape(-1, g.shape[-1]) for g in grads]
        rows = x.view(-1, x.shape[-1])
        halves = [_halves(p, x.dtype) for p in projections]
        low = [g @ b.t() for g, (_, b) in zip(flat, halves, strict=True)]
        adapters: list[torch.Tensor] = []
        for i, p in enumerate(projections):
            adapters += _adapter_gradients(_replay(rows, masks[i], p), flat[i], low[i], *halves[i])
        out: torch.Tensor | None = rows if len(projections) > 1 else None
        for i, p in enumerate(projections):
            weight = dequantize(p.weight, p.state, shared=False)
            if i:
                assert out is not None
                out.addmm_(flat[i], weight)
            else:
                out = torch.matmul(flat[i], weight, out=out)
            del weight
            _add_low_rank(out, low[i], halves[i][0], masks[i], p)
        assert out is not None
        return (out.view(x.shape), None, *adapters)


class LoraMlp(torch.autograd.Function):  # type: ignore[misc]
    """LoRA_MLP: keeps input, gate and up; backward writes the hidden state and both gradients over them."""

    @staticmethod
    @_in_autocast
    def forward(ctx: Any, x: torch.Tensor, projections: tuple[Projection, ...], *ab: torch.Tensor) -> torch.Tensor:
        """down(act(gate(x)) * up(x))."""
        gate, up, down = projections
        rows = x.view(-1, x.shape[-1])
        dropped, gate_mask = _drop(rows, gate)
        e = _project(rows, gate, dropped)
        dropped, up_mask = _drop(rows, up)
        g = _project(rows, up, dropped)
        del dropped
        h = torch.empty_like(e)
        dropped, down_mask = _drop(h, down)
        out = _project(h, down, dropped)
        ctx.projections = projections
        ctx.save_for_backward(x, e, g, gate_mask, up_mask, down_mask, *ab)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @_as_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """One more tensor of the MLP's width than forward kept."""
        gate, up, down = ctx.projections
        x, e, g, gate_mask, up_mask, down_mask, *_ = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        rows, dtype = x.view(-1, x.shape[-1]), x.dtype
        (gate_a, gate_b), (up_a, up_b), (down_a, down_b) = (_halves(p, dtype) for p in (gate, up, down))
        wide = torch.matmul(grad, dequantize(down.weight, down.state, shared=down.dropout == 0))
        if down_mask is None:
            wide.addmm_(grad @ down_b.t(), down_a.t())
        else:
            wide.add_(_replay((grad @ down_b.t()) @ down_a.t(), down_mask, down))
        hidden = _replay(wide, down_mask, down)  # the kernel wrote h over it, and both gradients over e and g
        adapters = [*_adapter_gradients(hidden, grad, grad @ down_b.t(), down_a, down_b)]
        up_low, gate_low = g @ up_b.t(), e @ gate_b.t()
        adapters = [*_adapter_gradients(_replay(rows, up_mask, up), g, up_low, up_a, up_b), *adapters]
        adapters = [*_adapter_gradients(_replay(rows, gate_mask, gate), e, gate_low, gate_a, gate_b), *adapters]
        weight = dequantize(up.weight, up.state, shared=False)
        out = torch.matmul(g, weight, out=rows)
        del weight
        _add_low_rank(out, up_low, up_a, up_mask, up)
        out.addmm_(e, dequantize(gate.weight, gate.state, shared=False))
        _add_low_rank(out, gate_low, gate_a, gate_mask, gate)
        return (out.view(x.shape), None, *adapters)
