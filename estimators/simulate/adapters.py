"""PEFT's wrapper for a plan: the configuration it would be given, and the casts that the platform makes afterwards."""

from typing import Any

import torch

from estimators.methods.adalora import initial_rank
from estimators.regime import Regime
from profiles.errors import InvalidInputError, UnsupportedError
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan

TASK_TYPES = {"causal-lm": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}
LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {},
    "lora_plus": {},
    "pissa": {},
    "loftq": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
}
PROMPT_METHODS = frozenset({"prompt", "prefix", "ptuning"})


def wrap(model: Any, plan: Plan, spec: ModelSpec, regime: Regime) -> Any:
    """Return the model with what `plan.method` trains, and nothing else, requiring gradients."""
    if plan.method == "full" and "peft_type" not in plan.method_options:
        return model
    if plan.method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return model
    if plan.method == "freeze":
        return _freeze(model, plan, spec)
    import peft

    config = peft_config(plan, spec)
    in_fp32 = regime.adapter == 4 or plan.quantization in QUANTIZED
    return peft.get_peft_model(model, config, autocast_adapter_dtype=in_fp32)


def cast_adapters(model: Any, plan: Plan, regime: Regime) -> None:
    """TRL 1.16 (sft_trainer.py) casts the adapters of a quantised base to 16 bits after PEFT made them in fp32."""
    if regime.adapter == 4 or plan.quantization not in QUANTIZED:
        return
    dtype = torch.float16 if regime.compute_dtype == "fp16" else torch.bfloat16
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)


def peft_config(plan: Plan, spec: ModelSpec) -> Any:
    """The PEFT configuration of a plan; `method_options` goes to it by its own names.

    Raises:
        UnsupportedError: PEFT knows no such method.
        InvalidInputError: PEFT does not take these options.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    options = dict(plan.method_options)
    task = "SEQ_CLS" if plan.task in ("classification", "reward") else TASK_TYPES.get(spec.kind)
    common: dict[str, Any] = {"task_type": task}
    if "peft_type" in options:
        name = str(options.pop("peft_type"))
        kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(name)
        if kind is None:
            raise UnsupportedError(
                f"this PEFT has no method {name!r}", f"it has {', '.join(PEFT_TYPE_TO_CONFIG_MAPPING)}"
            )
        return _make(kind, common | options)
    if plan.method == "prompt":
        return _make(peft.PromptTuningConfig, common | {"num_virtual_tokens": plan.num_virtual_tokens} | options)
    if plan.method in ("prefix", "ptuning"):
        kind = peft.PrefixTuningConfig if plan.method == "prefix" else peft.PromptEncoderConfig
        common |= {"num_virtual_tokens": plan.num_virtual_tokens}
        if plan.encoder_hidden_size is not None:
            common["encoder_hidden_size"] = plan.encoder_hidden_size
        if plan.method == "prefix":
            common["prefix_projection"] = plan.prefix_projection
        return _make(kind, common | options)
    common["target_modules"] = "all-linear" if "all-linear" in plan.target_modules else list(plan.target_modules)
    rank: dict[str, Any] = {"r": plan.lora_rank}
    lora = rank | {"lora_alpha": plan.lora_alpha or 2 * plan.lora_rank, "lora_dropout": plan.lora_dropout}
    if plan.method in LORA_VARIANTS:
        return _make(peft.LoraConfig, common | lora | LORA_VARIANTS[plan.method] | options)
    if plan.method == "adalora":
        del lora["r"]
        schedule = {"init_r": initial_rank(plan), "target_r": plan.lora_rank, "total_step": plan.max_steps or 1000}
        return _make(peft.AdaLoraConfig, common | lora | schedule | options)
    others: dict[str, tuple[Any, dict[str, Any]]] = {
        "ia3": (peft.IA3Config, {}),
        "oft": (peft.OFTConfig, {}),
        "vera": (peft.VeraConfig, rank),
        "loha": (peft.LoHaConfig, rank),
        "lokr": (peft.LoKrConfig, rank),
        "ln_tuning": (peft.LNTuningConfig, {"target_modules": None}),
    }
    if plan.method not in others:
        raise UnsupportedError(f"the simulated tier does not know the method {plan.method!r}")
    kind, own = others[plan.method]
    if plan.method == "ia3":
        del common["target_modules"]  # PEFT's own choice by model type: keys, values and the MLP's output
    return _make(kind, common | own | options)


def _make(kind: Any, options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise InvalidInputError("method_options", f"{kind.__name__} does not take them: {error}") from error


def _freeze(model: Any, plan: Plan, spec: ModelSpec) -> Any:
    """LLaMA-Factory's freeze: only the last n layers are trained."""
    trained = int(plan.method_options.get("freeze_trainable_layers", 2))
    first = spec.num_hidden_layers - trained
    for name, parameter in model.named_parameters():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        parameter.requires_grad_(bool(numbers) and numbers[0] >= first)
    return model
