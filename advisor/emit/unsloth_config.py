"""Plan -> config.yaml of the Unsloth project, in the words of Unsloth 2026.10.7 and TRL 1.15."""

from typing import Any

from advisor.emit import huggingface_config
from advisor.emit.defaults import choose_precision
from advisor.emit.peft_config import peft_config
from estimators.methods.base import target_linears
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, Checkpointing, Plan

CHECKPOINTING: dict[Checkpointing, bool | str] = {"none": False, "full": True, "unsloth": "unsloth"}


def build_config(plan: Plan, model: ModelSpec, model_ref: str) -> dict[str, Any]:
    """All of config.yaml, section by section."""
    return {
        "model": loading(plan, model_ref),
        "precision": choose_precision(plan) or "auto",
        "adapter": adapter(plan, model),
        "early_stopping_patience": plan.early_stopping_patience,
        "expandable_segments": plan.expandable_segments,
        "training": training(plan, model),
    }


def loading(plan: Plan, model_ref: str) -> dict[str, Any]:
    """Arguments of FastLanguageModel.from_pretrained."""
    full = plan.method == "full"
    return {
        "model_name": model_ref,
        # Otherwise the loader takes a quantised copy from Unsloth's own repositories wherever it knows one.
        "use_exact_model_name": True,
        "max_seq_length": plan.seq_len,
        "load_in_4bit": plan.quantization in FOUR_BIT,
        "load_in_8bit": plan.quantization == "int8",
        "load_in_16bit": plan.quantization in ("bf16", "fp16") and not full,
        "full_finetuning": full,
        "use_gradient_checkpointing": CHECKPOINTING[plan.gradient_checkpointing],
        "random_state": plan.seed,
    }


def adapter(plan: Plan, model: ModelSpec) -> dict[str, Any] | None:
    """Arguments of FastLanguageModel.get_peft_model; None where the base itself is trained."""
    peft = peft_config(plan, model)
    if peft is None:
        return None
    experts = any(group.block.mlp.experts for group in model.layers)
    return {
        **{key: value for key, value in peft.items() if key not in ("peft_type", "task_type")},
        "target_modules": list(module_names(plan, model)),
        # None would let Unsloth find the experts, which are no modules, and adapt them too.
        **({"target_parameters": []} if experts else {}),
        "use_gradient_checkpointing": CHECKPOINTING[plan.gradient_checkpointing],
        "random_state": plan.seed,
    }


def module_names(plan: Plan, model: ModelSpec) -> tuple[str, ...]:
    """The last names of all targets, which is how Unsloth tells modules apart."""
    return tuple(dict.fromkeys(x.linear.name.rpartition(".")[2] for x in target_linears(model, plan)))


def training(plan: Plan, model: ModelSpec) -> dict[str, Any]:
    """Arguments of trl.SFTConfig as transformers 5.17 names them."""
    values = huggingface_config.training(plan, model)
    del values["activation_checkpointing"]
    return {
        **values,
        "gradient_checkpointing": plan.gradient_checkpointing != "none",
        "padding_free": plan.packing,
        "include_num_input_tokens_seen": "non_padding",  # Unsloth's loss leaves out TRL's own count
    }
