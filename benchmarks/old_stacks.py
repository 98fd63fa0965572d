"""What the libraries of published runs did and today's do not, for the simulated tier.

From the sources of transformers 4.48.1 (loss/loss_utils.py) and 5.0.0 (core_model_loading.py), TRL 0.13.0
(trainer/utils.py) and fms-acceleration-foak 0.7.4 (fused_ops/unsloth_lora/bnb/fast_lora.py). What a plan can say
(reentrant checkpoints, fused norms, dropout) is in rows.py.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import torch

Change = Literal["shifted logits", "embeddings in half", "fused LoRA", "weights ahead"]
LOADING_THREADS = 4


def make_changes(changes: frozenset[Change]) -> None:
    """Change all models that this process builds from now on."""
    import estimators.simulate.build as builder

    if "weights ahead" in changes:
        _load_ahead()
    build = builder.build

    def changed(*args: Any, **kwargs: Any) -> Any:
        built = build(*args, **kwargs)
        for change in sorted(changes & CHANGES.keys()):
            CHANGES[change](built.model.get_base_model())
        return built

    builder.build = changed


def _load_ahead() -> None:
    """5.0.0: threads bring whole weights to the card while one after another is quantised. (Later ones wait, where a
    base is quantised on the fly, since the weights heaped up.)"""
    import estimators.simulate.build as builder
    import estimators.simulate.load as loading

    load, place = builder.load, loading._place
    waiting: deque[tuple[Any, ...]] = deque()

    def place_later(*weight: Any) -> None:
        waiting.append(weight)
        if len(waiting) > LOADING_THREADS:
            place(*waiting.popleft())

    def load_all(*args: Any, **kwargs: Any) -> None:
        load(*args, **kwargs)
        while waiting:
            place(*waiting.popleft())

    loading._place, builder.load = place_later, load_all


def _shift_logits(model: Any) -> None:
    """ForCausalLMLoss of 4.46 to 4.49 copies the shifted fp32 logits; today's shifts the labels."""

    def loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
        logits = logits.float()
        shifted = logits[..., :-1, :].contiguous().view(-1, vocab_size)
        return torch.nn.functional.cross_entropy(shifted, labels[..., 1:].contiguous().view(-1))

    model.loss_function = loss


def _embeddings_in_half(model: Any) -> None:
    """peft_module_casting_to_bf16: after k-bit preparation embedding and head go back to bf16, norms stay in fp32."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.to(torch.bfloat16)


class FusedLora(torch.autograd.Function):  # type: ignore[misc]
    """FOAK's LoRA_QKV and LoRA_W: keep the input and each projection's dropped input; the gradient goes over the
    input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, modules: tuple[Any, ...], *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each base product, with A x and its product with B added in place."""
        outs, dropped = [], []
        for module in modules:
            out = module.base_layer(x)
            low = module.lora_dropout["default"](x)
            dropped.append(low)
            a, b = (weight.to(x.dtype) for weight in _adapter(module))
            out += (low @ a.t()) @ b.t()
            outs.append(out)
        ctx.modules = modules
        ctx.save_for_backward(x, *dropped)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """New gradients of A and B; the input's in its place."""
        x, *_ = ctx.saved_tensors
        kept = [torch.empty_like(weight) for module in ctx.modules for weight in _adapter(module)]
        return (x.view(x.shape), None, *kept)


def _adapter(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def _fused_lora(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "q_proj") and hasattr(module.q_proj, "lora_A"):
            made: dict[str, torch.Tensor] = {}
            names = ("q_proj", "k_proj", "v_proj")
            projections = tuple(getattr(module, name) for name in names)
            for name, projection in zip(names, projections, strict=True):
                projection.forward = _taken(name, names, projections, made)
            module.o_proj.forward = _taken("o_proj", ("o_proj",), (module.o_proj,), {})


def _taken(
    name: str, names: tuple[str, ...], modules: tuple[Any, ...], made: dict[str, torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The first projection that is called makes all; each takes its own."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        if name not in made:
            weights = [weight for module in modules for weight in _adapter(module)]
            made.update(zip(names, FusedLora.apply(x, modules, *weights), strict=True))
        return made.pop(name)

    return forward


CHANGES: dict[Change, Callable[[Any], None]] = {
    "shifted logits": _shift_logits,
    "embeddings in half": _embeddings_in_half,
    "fused LoRA": _fused_lora,
}
