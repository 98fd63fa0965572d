"""(IA)3: trained vectors that scale keys, values and the MLP's inner features (Liu et al. 2022, arXiv 2205.05638)."""

from collections.abc import Iterator

from estimators.methods.base import AdaptedLinear, TrainedTensors, target_linears
from estimators.methods.linear_adapter import LinearAdapter
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan

# PEFT's own choice by model type (peft 0.21.2 utils/constants.py); taken when target_modules is left at all-linear
TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("key", "value", "output.dense"),
    "bloom": ("query_key_value", "mlp.dense_4h_to_h"),
    "falcon": ("query_key_value", "dense_4h_to_h"),
    "gemma": ("q_proj", "v_proj", "down_proj"),
    "gemma2": ("q_proj", "v_proj", "down_proj"),
    "gemma3_text": ("q_proj", "v_proj", "down_proj"),
    "gpt2": ("c_attn", "mlp.c_proj"),
    "gpt_neo": ("q_proj", "v_proj", "c_proj"),
    "gpt_neox": ("query_key_value", "dense_4h_to_h"),
    "gptj": ("q_proj", "v_proj", "fc_out"),
    "llama": ("k_proj", "v_proj", "down_proj"),
    "mistral": ("k_proj", "v_proj", "down_proj"),
    "opt": ("q_proj", "k_proj", "fc2"),
    "phi": ("q_proj", "v_proj", "fc2"),
    "qwen2": ("q_proj", "v_proj", "down_proj"),
    "qwen3": ("q_proj", "v_proj", "down_proj"),
    "roberta": ("key", "value", "output.dense"),
}


def default_targets(plan: Plan, model: ModelSpec, table: dict[str, tuple[str, ...]]) -> Plan:
    """The plan with PEFT's own targets for this model type, unless it names some."""
    if plan.target_modules != ("all-linear",) or model.model_type not in table:
        return plan
    return plan.replace(target_modules=table[model.model_type])


def no_default_targets(title: str, plan: Plan, model: ModelSpec, table: dict[str, tuple[str, ...]]) -> str | None:
    """Say that PEFT would ask for names."""
    if plan.target_modules == ("all-linear",) and model.model_type not in table:
        return f"PEFT has no {title} targets for {model.model_type}: name them in target_modules"
    return None


class Ia3(LinearAdapter):
    """One vector a linear: as long as the output or, of the MLP's last linear, as the input."""

    id = "ia3"
    title = "(IA)3"
    peft_type = "IA3"
    uses_rank = False

    def adapted(self, model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        """PEFT's own targets, or those that target_modules names."""
        found = target_linears(model, default_targets(plan, model, TARGETS))
        return tuple(AdaptedLinear(linear=x.linear, layers=x.layers, rank=1) for x in found)

    def parameters(self, x: AdaptedLinear, plan: Plan) -> Iterator[TrainedTensors]:
        """The vector."""
        length = x.linear.in_features if x.linear.role == "down" else x.linear.out_features
        yield TrainedTensors(elements=length, tensors=x.layers)

    def adapter(self, plan: Plan) -> str:
        """A vector."""
        return "ia3"

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """PEFT has to know the model type or be told names; feedforward_modules is always the MLP's last linear."""
        if "feedforward_modules" in plan.method_options:
            return "(IA)3 is modelled with the MLP's last linear as its feed-forward module, not with others"
        if plan.quantization in QUANTIZED and plan.mixed_precision is False:
            return "(IA)3 over a quantised base makes fp32 keys without autocast, which its queries do not match"
        return no_default_targets(self.title, plan, model, TARGETS) or super().refusal(model, plan)


METHOD = Ia3()
