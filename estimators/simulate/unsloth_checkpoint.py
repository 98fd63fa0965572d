"""Unsloth's gradient checkpointing: each layer's input goes to the host and comes back into one of two buffers.

Modelled from unsloth_zoo 2026.10.7, gradient_checkpointing.py UnslothCheckpointFunction: the buffers live on the card
for good; the second is used from the second pass on (free memory above 512 MiB is taken for granted); the last layer's
input stays on the card after the first pass, and so does every input of 2 MiB or less.
"""

from typing import Any

import torch

from profiles.units import MIB

INITIAL_ELEMENTS = 2 * 256 * 2048  # INITIAL_GPU_BUFFER_SIZE, of each buffer
MINIMUM_BYTES = 2 * MIB  # MINIMUM_SIZE


class OffloadedCheckpoints:
    """The state that the module keeps in globals."""

    def __init__(self) -> None:
        self.buffers: dict[int, torch.Tensor] = {}
        self.first_pass = True
        self.last = 0
        self.current = 0
        self.slot = 0

    def run(self, function: Any, *args: Any, **_: Any) -> Any:
        """Stand for torch.utils.checkpoint.checkpoint."""
        if not any(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
            return function(*args)
        return _Checkpoint.apply(self, function, *args)

    def offload(self, x: torch.Tensor) -> int | None:
        """Count the layer; the slot that will hold its input in backward, or None if that stays on the card."""
        self.last += self.first_pass
        self.current += 1
        if x.nbytes <= MINIMUM_BYTES or (self.current == self.last and not self.first_pass):
            return None
        self._grow(0, x)
        if self.first_pass:
            return 0
        self._grow(1, x)
        self.slot ^= 1
        return self.slot

    def _grow(self, slot: int, x: torch.Tensor) -> None:
        buffer = self.buffers.get(slot)
        needed = max(x.numel(), INITIAL_ELEMENTS)
        if buffer is None or buffer.numel() < needed:
            self.buffers[slot] = torch.empty(needed, dtype=x.dtype, device=x.device)


class _Checkpoint(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, state: OffloadedCheckpoints, function: Any, *args: Any) -> Any:
        ctx.state, ctx.function = state, function
        hidden, *others = args
        ctx.slot = state.offload(hidden)
        kept = hidden if ctx.slot is None else hidden.to("cpu")
        ctx.others = others
        ctx.save_for_backward(kept)
        ctx.autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.no_grad():
            return function(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        state: OffloadedCheckpoints = ctx.state
        (kept,) = ctx.saved_tensors
        state.first_pass, state.current = False, 0
        if ctx.slot is None:
            hidden = kept.detach()
        else:
            hidden = state.buffers[ctx.slot][: kept.numel()].view(kept.shape).copy_(kept).detach()
        hidden.requires_grad_(True)
        enabled, dtype = ctx.autocast
        with torch.enable_grad(), torch.autocast("cuda", dtype=dtype, enabled=enabled):
            outputs = ctx.function(hidden, *ctx.others)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        torch.autograd.backward(first, grads[0])
        return None, None, hidden.grad, *(None for _ in ctx.others)
