"""Plan -> config.yaml of the Hugging Face project, in the words of transformers 5.23, PEFT 0.21.2 and TRL 1.16."""

from typing import Any

from advisor.emit.defaults import checkpoints, choose_precision, evaluations, learning_rate
from advisor.emit.peft_config import LORA_OPTIONS, LORA_VARIANTS, PEFT_OPTIONS, peft_config
from estimators.methods.freeze import trainable_layers
from estimators.methods.scalar_head import SCALAR_HEADS, SCALAR_TASKS
from estimators.tasks import completion_tokens
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, QUANTIZED, Plan

DTYPES: dict[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

PROJECTED = {"galore": "galore_adamw", "apollo": "apollo_adamw"}  # transformers' names of their optimizers
ADAPTERS = frozenset({"adalora", "oft", "ia3", "vera", "loha", "lokr", "miss", "fourierft", "ln_tuning"})
SOFT_PROMPTS = frozenset({"prompt", "prefix", "ptuning"})
METHODS = frozenset({*LORA_VARIANTS, *ADAPTERS, *SOFT_PROMPTS, *PROJECTED, "full", "bitfit", "freeze"})
OPTIONS = PEFT_OPTIONS | {
    "loraplus": LORA_OPTIONS | {"loraplus_lr_ratio"},
    "freeze": frozenset({"freeze_trainable_layers"}),
}
TRL_GENERATIONS = 8  # GRPOConfig's default
EVALUATED_GENERATIONS = 2
LORAPLUS_RATIO = 16  # the paper's choice (arXiv 2402.12354)

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
        "task": plan.task,
        "method": plan.method,
        "peft": peft_config(plan, model),
        "adapter_dtype": plan.adapter_dtype,
        **method_settings(plan),
        **task_settings(plan),
        "early_stopping_patience": plan.early_stopping_patience,
        "expandable_segments": plan.expandable_segments,
        "training": training(plan, model),
    }


def method_settings(plan: Plan) -> dict[str, Any]:
    """What only the script of one method reads."""
    if plan.method == "adalora":
        return {"adalora": {"warmup": ADALORA_WARMUP, "final": ADALORA_FINAL}}
    if plan.method == "loraplus":
        return {"loraplus_lr_ratio": plan.method_options.get("loraplus_lr_ratio", LORAPLUS_RATIO)}
    return {"trained_layers": trainable_layers(plan)} if plan.method == "freeze" else {}


def task_settings(plan: Plan) -> dict[str, Any]:
    """What only task.py reads."""
    if plan.task == "classification":
        return {"max_length": plan.seq_len}
    return {"max_prompt_length": plan.seq_len - completion_tokens(plan)} if plan.task == "grpo" else {}


def task_arguments(plan: Plan) -> dict[str, Any]:
    """Arguments that the tasks' classes have in common with no other."""
    if plan.task in ("sft", "pretrain"):
        return {"max_length": plan.seq_len, "packing": plan.packing}
    if plan.task == "classification":
        return {"include_num_input_tokens_seen": "non_padding"}
    if plan.task != "grpo":
        return {"max_length": plan.seq_len}
    return {
        "max_completion_length": completion_tokens(plan),
        "num_generations": generation_counts(plan)[-1],
        "num_generations_eval": EVALUATED_GENERATIONS,
        **({"metric_for_best_model": "eval_reward"} if plan.early_stopping_patience else {}),
    }


def generation_counts(plan: Plan) -> list[int]:
    """How many samples a prompt may have, up to TRL's 8: what divides a step's sequences."""
    return [n for n in range(2, TRL_GENERATIONS + 1) if plan.global_batch_size % n == 0]


def evaluation_batch(plan: Plan) -> int:
    """Sequences a card. TRL's default of 8 could need more memory than the training itself; GRPO's are groups of 2."""
    return max(2, plan.micro_batch_size // 2 * 2) if plan.task == "grpo" else plan.micro_batch_size


def quantization(plan: Plan) -> dict[str, Any] | None:
    """Arguments of BitsAndBytesConfig; the compute dtype follows `precision`."""
    kept: dict[str, Any] = {"llm_int8_skip_modules": list(SCALAR_HEADS)} if plan.task in SCALAR_TASKS else {}
    if plan.quantization == "int8":
        return {"load_in_8bit": True, **kept}
    if plan.quantization not in FOUR_BIT:
        return None
    return kept | {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4" if plan.quantization == "fp4" else "nf4",
        "bnb_4bit_use_double_quant": plan.quantization == "nf4-dq",
    }


def training(plan: Plan, model: ModelSpec) -> dict[str, Any]:
    """Arguments of the task's config class. `warmup_steps` below 1 is a share (there is no warmup_ratio)."""
    return {
        **task_arguments(plan),
        "per_device_train_batch_size": plan.micro_batch_size,
        "per_device_eval_batch_size": evaluation_batch(plan),
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "activation_checkpointing": plan.gradient_checkpointing == "full",
        **({} if plan.reentrant is None else {"activation_checkpointing_kwargs": {"use_reentrant": plan.reentrant}}),
        "learning_rate": learning_rate(plan, model),
        "lr_scheduler_type": plan.lr_scheduler,
        "warmup_steps": plan.warmup_ratio,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        **optimizer(plan),
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
    }


def optimizer(plan: Plan) -> dict[str, Any]:
    """GaLore and APOLLO are optimizers: theirs stands in the place of the plan's AdamW."""
    if plan.method not in PROJECTED:
        return {"optim": plan.optimizer}
    whole = plan.target_modules == ("all-linear",)
    return {
        "optim": PROJECTED[plan.method],
        "optim_target_modules": "all-linear" if whole else list(plan.target_modules),
        "optim_args": f"rank={plan.lora_rank}",
    }
