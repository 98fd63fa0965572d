"""Plan -> config.yaml of the Hugging Face project, in the words of transformers 5.23, PEFT 0.21.2 and TRL 1.16."""

from typing import Any

from advisor.emit.defaults import checkpoints, choose_precision, evaluations, learning_rate
from estimators.methods import get_method
from estimators.methods.adalora import initial_rank
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, QUANTIZED, Plan

DTYPES: dict[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

# LoRA's variants are options of its config class.
LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
}
METHODS = frozenset({*LORA_VARIANTS, "full", "adalora", "bitfit", "prompt", "prefix", "ptuning"})

# Options that only one method knows, in PEFT's own names.
LORA_OPTIONS = frozenset({"use_dora", "use_rslora", "init_lora_weights"})
METHOD_OPTIONS: dict[str, frozenset[str]] = {
    "lora": LORA_OPTIONS,
    "qlora": LORA_OPTIONS,
    "adalora": frozenset({"init_r", "deltaT", "beta1", "beta2", "orth_reg_weight"}),
    "prompt": frozenset({"prompt_tuning_init", "prompt_tuning_init_text"}),
    "ptuning": frozenset({"encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout"}),
}

# AdaLoRA's own scripts (QingruZhang/AdaLoRA) spend about a tenth of the steps at the full rank and a fifth to a third
# at the final one.
ADALORA_WARMUP, ADALORA_FINAL = 0.1, 0.3


def build_config(plan: Plan, model: ModelSpec, model_ref: str) -> dict[str, Any]:
    """All of config.yaml, section by section."""
    precision = choose_precision(plan)
    stored = (precision or "bf16") if plan.quantization in QUANTIZED else plan.quantization
    return {
        "model": {
            "name_or_path": model_ref,
            "dtype": DTYPES[stored],
            "attn_implementation": None if plan.attention == "auto" else plan.attention,
            "use_cache": plan.use_cache,
        },
        "precision": precision or "auto",
        "mixed_precision": plan.mixed_precision is not False,
        "quantization": quantization(plan),
        "shard_quantized": plan.quantization in FOUR_BIT and plan.sharding == "fsdp2",
        "kbit_prepared": bool(plan.kbit_prepared),
        "method": plan.method,
        "peft": peft_config(plan, model),
        "adapter_dtype": plan.adapter_dtype,
        **({"adalora": {"warmup": ADALORA_WARMUP, "final": ADALORA_FINAL}} if plan.method == "adalora" else {}),
        "early_stopping_patience": plan.early_stopping_patience,
        "expandable_segments": plan.expandable_segments,
        "training": training(plan, model),
    }


def quantization(plan: Plan) -> dict[str, Any] | None:
    """Arguments of BitsAndBytesConfig; the compute dtype follows `precision`."""
    if plan.quantization == "int8":
        return {"load_in_8bit": True}
    if plan.quantization not in FOUR_BIT:
        return None
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4" if plan.quantization == "fp4" else "nf4",
        "bnb_4bit_use_double_quant": plan.quantization == "nf4-dq",
    }


def peft_config(plan: Plan, model: ModelSpec) -> dict[str, Any] | None:
    """Arguments of the method's PEFT config class; None where the base itself is trained."""
    kind = get_method(plan.method).peft_type
    if kind is None:
        return None
    config: dict[str, Any] = {"peft_type": kind, "task_type": "CAUSAL_LM"}
    if get_method(plan.method).uses_rank:
        options = LORA_VARIANTS.get(plan.method, {}) | plan.method_options
        # alpha = 2 r is the usual choice; rsLoRA divides by sqrt(r) only, so there alpha = r is ample.
        alpha = plan.lora_alpha or plan.lora_rank * (1 if options.get("use_rslora") else 2)
        whole = plan.target_modules == ("all-linear",)
        config |= {
            "target_modules": "all-linear" if whole else list(plan.target_modules),
            "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
            "lora_dropout": plan.lora_dropout,
        }
        if plan.method == "adalora":
            config |= {"init_r": initial_rank(plan), "target_r": plan.lora_rank}
            config["total_step"] = 1  # PEFT wants a number; the run sets the true one when it knows it
        else:
            config |= {"r": plan.lora_rank, **LORA_VARIANTS[plan.method]}
    else:
        config["num_virtual_tokens"] = plan.num_virtual_tokens
    if plan.method == "prompt":  # from real tokens: 11 points better than random on GSM8K (PEFT method_comparison)
        config["prompt_tuning_init"] = "SAMPLE_VOCAB"
    if plan.method == "prefix":
        config["prefix_projection"] = plan.prefix_projection
        if plan.prefix_projection:
            config["encoder_hidden_size"] = plan.encoder_hidden_size or model.hidden_size
    if plan.method == "ptuning":
        config["encoder_hidden_size"] = plan.encoder_hidden_size or model.embeddings[0].width
    return config | plan.method_options


def training(plan: Plan, model: ModelSpec) -> dict[str, Any]:
    """Arguments of trl.SFTConfig. `warmup_steps` below 1 is a share: transformers 5.23 has no warmup_ratio."""
    return {
        "max_length": plan.seq_len,
        "packing": plan.packing,
        "per_device_train_batch_size": plan.micro_batch_size,
        # Its default of 8 could need more memory than the training itself.
        "per_device_eval_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "activation_checkpointing": plan.gradient_checkpointing == "full",
        "learning_rate": learning_rate(plan, model),
        "lr_scheduler_type": plan.lr_scheduler,
        "warmup_steps": plan.warmup_ratio,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "optim": plan.optimizer,
        "num_train_epochs": plan.num_epochs,
        "max_steps": plan.max_steps or -1,
        "seed": plan.seed,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_on_start": True,
        "eval_steps": 1 / evaluations(plan),
        "save_strategy": "steps",
        "save_steps": 1 / checkpoints(plan),
        "save_total_limit": 2,
        "load_best_model_at_end": plan.early_stopping_patience > 0,
        "disable_tqdm": True,
        "report_to": "none",
    }
