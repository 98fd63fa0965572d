"""Loss paths: the model's own loss over all logits, TRL's fused LM head, and a chunked fused linear cross-entropy."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from estimators.simulate.tracker import Tracker

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[Batch], tuple[Any, torch.Tensor]]
UnslothLoss = Callable[[Any, Batch], torch.Tensor]  # of a model without its adapter, and a batch


def loss_function(
    kind: str, model: Any, tracker: Tracker, *, use_cache: bool, to_fp32: bool, unsloth: UnslothLoss | None = None
) -> LossFunction:
    """Return batch -> (outputs, loss). `to_fp32`: accelerate converts the outputs of an autocast forward.

    unsloth: the chunked loss is Unsloth's; None: it is Liger's.
    """
    if kind == "fused":
        return _fused(model, tracker)
    if kind == "chunked" and unsloth is not None:
        return lambda batch: (None, unsloth(base_model(model), batch))
    if kind == "chunked":
        return lambda batch: (None, _chunked(model, batch))

    def full(batch: Batch) -> tuple[Any, torch.Tensor]:
        outputs = model(**batch, **({"use_cache": use_cache} if "labels" in batch else {}))
        if to_fp32:
            from accelerate.utils.operations import convert_to_fp32

            outputs = convert_to_fp32(outputs)
        return outputs, outputs.loss

    return full


def base_model(model: Any) -> Any:
    """The transformers model, without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def silence_fused_kernels(tracker: Tracker) -> None:
    """Leave out the Triton kernels of TRL 1.16's fused LM head, which allocate nothing."""
    import trl.kernels.chunked_logprob as kernels
    import trl.trainer.utils as utils

    for module in (kernels, utils):
        module._use_triton = lambda _: True
    silent = _Launcher()
    kernels._forward_kernel = kernels._backward_kernel = silent
    kernels._addmm_fp32 = lambda _, a, b: tracker.multiplied(a, b)  # cuBLAS accumulates into the first argument
    kernels.triton = SimpleNamespace(cdiv=lambda a, b: -(-a // b))


def _fused(model: Any, tracker: Tracker) -> LossFunction:
    """TRL 1.16 add_fused_lm_head."""
    import trl.trainer.utils as utils

    silence_fused_kernels(tracker)
    utils.add_fused_lm_head(base_model(model), outputs=("log_probs", "entropy", "is_top1"))

    def fused(batch: Batch) -> tuple[Any, torch.Tensor]:
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
        loss = (-outputs.log_probs).sum() / torch.as_tensor(1).clamp(min=1)
        return outputs, loss

    return fused


class _Launcher:
    """Stands for a Triton kernel: `kernel[grid](...)` does nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *_, **__: None


def _chunked(model: Any, batch: Batch) -> torch.Tensor:
    base = base_model(model)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden = base.base_model(**inputs, use_cache=False)[0]
    head = base.get_output_embeddings()
    rows = hidden.reshape(-1, hidden.shape[-1])
    loss: torch.Tensor = _ChunkedLinearCrossEntropy.apply(rows, head.weight)
    return loss


class _ChunkedLinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """Liger's fused_linear_cross_entropy: gradients in the forward, logits a chunk of rows at a time.

    The chunk is chosen so that its logits take about as much as the hidden states: ceil(vocab / hidden) chunks, rounded
    up to a power of two rows.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the mean loss; keep the gradients of both arguments."""
        rows = hidden.shape[0]
        ratio = -(-weight.shape[0] // weight.shape[1])
        chunk = 1 << (-(-rows // ratio) - 1).bit_length()
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        losses = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
        for start in range(0, rows, chunk):
            part = hidden[start : start + chunk]
            logits = part @ weight.t()
            grad_hidden[start : start + chunk] = logits @ weight
            if grad_weight is not None:
                grad_weight += torch.mm(logits.t(), part)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Hand out what the forward computed."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden, grad_weight
