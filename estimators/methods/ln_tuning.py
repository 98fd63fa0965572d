"""LN tuning: only the normalisation layers are trained, as copies beside the originals (arXiv 2312.11420)."""

from collections.abc import Iterator

from estimators.methods.base import Method, TrainedTensors, matches
from estimators.methods.ia3 import no_default_targets
from profiles.model import ModelSpec, Norm
from profiles.plan import QUANTIZED, Plan

# PEFT's own choice by model type (peft 0.21.2 utils/constants.py)
_LLAMA = ("input_layernorm", "post_attention_layernorm", "norm")
_GEMMA = (*_LLAMA[:2], "pre_feedforward_layernorm", "post_feedforward_layernorm", "norm")
TARGETS: dict[str, tuple[str, ...]] = {
    "bloom": ("input_layernorm", "post_attention_layernorm", "ln_f"),
    "falcon": ("input_layernorm", "post_attention_layernorm", "ln_f"),
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": ("ln_1", "ln_2", "ln_f"),
    "gptj": ("ln_1", "ln_f"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi": ("input_layernorm", "final_layernorm"),
    "qwen2": ("post_attention_layernorm",),
    "qwen3": ("post_attention_layernorm",),
}


def trained_norms(model: ModelSpec, plan: Plan) -> Iterator[tuple[Norm, int]]:
    """Yield the norms that are copied and trained, and in how many layers."""
    names = plan.target_modules
    if names == ("all-linear",):
        names = TARGETS.get(model.model_type, ())
    for group in model.layers:
        for norm in group.block.norms:
            if any(matches(name, norm.name) for name in names):
                yield norm, group.count
    for norm in model.extra_norms:
        if any(matches(name, norm.name) for name in names):
            yield norm, 1


class LnTuning(Method):
    """Norm weights (and biases) in the base's dtype."""

    id = "ln_tuning"
    title = "LN tuning"
    peft_type = "LN_TUNING"

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """Weights and biases of the chosen norms."""
        for norm, layers in trained_norms(model, plan):
            yield TrainedTensors(
                elements=norm.size, tensors=layers * (norm.affine + norm.bias), in_base=True, is_copy=True
            )

    def trains_norm(self, norm: Norm, model: ModelSpec, plan: Plan) -> bool:
        """Whether the norm is among the chosen ones."""
        return any(norm == chosen for chosen, _ in trained_norms(model, plan))

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """PEFT has to know the model type or be told names."""
        if plan.quantization in QUANTIZED:
            return f"transformers' Trainer refuses to train a {plan.quantization} base without adapters of its kind"
        if plan.target_modules != ("all-linear",) and not any(trained_norms(model, plan)):
            return f"{model.name} has no norm called {', '.join(plan.target_modules)}"
        return no_default_targets(self.title, plan, model, TARGETS)


METHOD = LnTuning()
