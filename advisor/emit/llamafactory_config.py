"""Plan -> train.yaml and its companions, in the words of LLaMA-Factory 0.9.5 and transformers 5.6."""

import json
from functools import cache
from pathlib import PurePath
from typing import Any

from advisor.emit.base import Source, template
from advisor.emit.defaults import checkpoints, choose_precision, evaluations, learning_rate
from advisor.hardware import resolve_hardware
from estimators.methods import get_method
from estimators.regime import default_compute_dtype
from profiles.dataset import Form
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, FloatType, Plan

Arguments = dict[str, Any]

# hparams/finetuning_args.py
FINETUNING_TYPES = {
    **dict.fromkeys(("lora", "qlora", "dora", "rslora", "loraplus", "pissa"), "lora"),
    **dict.fromkeys(("full", "galore", "apollo", "badam"), "full"),
    "freeze": "freeze",
    "oft": "oft",
}
VARIANTS: dict[str, Arguments] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "loraplus": {"loraplus_lr_ratio": 16.0},  # the paper's lambda (arXiv 2402.12354), LLaMA-Factory's example
    "pissa": {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True},
    "galore": {"use_galore": True},
    "apollo": {"use_apollo": True},
    "badam": {"use_badam": True},
}
LORA_OPTIONS = frozenset({"modules_to_save", "use_dora", "use_rslora"})
METHOD_OPTIONS: dict[str, frozenset[str]] = {
    **{name: LORA_OPTIONS for name, kind in FINETUNING_TYPES.items() if kind == "lora"},
    "oft": frozenset({"r", "oft_block_size", "modules_to_save"}),
    "freeze": frozenset({"freeze_trainable_layers"}),
}
# Where `all` finds other modules than transformers 5.23's (transformers 5.6): GPT-NeoX's head is called embed_out,
# DeepSeek-V2's router is a Linear, Llama 4's none by name.
NAMED_TARGETS = frozenset({"gpt_neox", "deepseek_v2", "llama4_text"})
ATTENTION = {"auto": "auto", "sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}

NO_TIMEOUT = 180_000_000  # seconds, LLaMA-Factory's examples: the other cards wait while the first reads the data


def build_arguments(plan: Plan, model: ModelSpec, source: Source) -> dict[str, Arguments]:
    """All of train.yaml, section by section."""
    return {
        "model": model_arguments(plan, source),
        "method": method_arguments(plan, model, source),
        "data": data_arguments(plan, source),
        "training": training_arguments(plan, model),
        "evaluation": evaluation_arguments(plan, source),
        "output": output_arguments(plan, source),
    }


def compute_dtype(plan: Plan) -> FloatType:
    """What matmuls run in on the plan's card; bf16 where it names none."""
    if plan.gpu is None:
        return choose_precision(plan) or "bf16"
    return choose_precision(plan) or default_compute_dtype(resolve_hardware(plan.gpu).gpu)


def on_cpu(plan: Plan) -> bool:
    """Whether the plan is for no GPU at all."""
    return plan.gpu is not None and resolve_hardware(plan.gpu).gpu.vendor == "CPU"


def model_arguments(plan: Plan, source: Source) -> Arguments:
    """How the base is loaded and run."""
    found: Arguments = {"model_name_or_path": source.model_ref}
    if plan.quantization == "int8":
        found["quantization_bit"] = 8
    elif plan.quantization in FOUR_BIT:
        found["quantization_bit"] = 4
        found["quantization_type"] = "fp4" if plan.quantization == "fp4" else "nf4"
        found["double_quantization"] = plan.quantization == "nf4-dq"
    found["flash_attn"] = ATTENTION[plan.attention]
    if plan.loss_kernel == "chunked":
        found["enable_liger_kernel"] = True
    found["disable_gradient_checkpointing"] = plan.gradient_checkpointing == "none"
    if plan.reentrant is not None:
        found["use_reentrant_gc"] = plan.reentrant
    if plan.gradient_checkpointing == "unsloth":
        found["use_unsloth_gc"] = True
    return found


def method_arguments(plan: Plan, model: ModelSpec, source: Source) -> Arguments:
    """Which stage, and what is trained."""
    kind = FINETUNING_TYPES[plan.method]
    found: Arguments = {"stage": stage(plan, source), "do_train": True, "finetuning_type": kind}
    if plan.task in ("dpo", "orpo"):
        found["pref_loss"] = "sigmoid" if plan.task == "dpo" else "orpo"
    found |= VARIANTS.get(plan.method, {})
    options = dict(plan.method_options)
    saved = options.pop("modules_to_save", None)
    if kind in ("lora", "oft"):
        found["lora_target"] = targets(plan, model)
    if saved:
        found["additional_target"] = ",".join([saved] if isinstance(saved, str) else saved)
    if kind == "lora":
        rank_stabilised = found.get("use_rslora") or options.get("use_rslora")
        # alpha = 2 r is the usual choice; rsLoRA divides by sqrt(r) only, so there alpha = r is ample.
        alpha = plan.lora_alpha or plan.lora_rank * (1 if rank_stabilised else 2)
        found |= {"lora_rank": plan.lora_rank, "lora_alpha": int(alpha), "lora_dropout": plan.lora_dropout, **options}
    elif kind == "oft":
        found["module_dropout"] = plan.lora_dropout
        blocks = int(options.get("r", 0))
        found |= {"oft_rank": blocks, "oft_block_size": 0 if blocks else int(options.get("oft_block_size", 32))}
    elif kind == "freeze":
        found["freeze_trainable_layers"] = int(options.get("freeze_trainable_layers", 2))
    elif plan.method in ("galore", "apollo"):
        found |= {f"{plan.method}_target": targets(plan, model), f"{plan.method}_rank": plan.lora_rank}
    if plan.optimizer == "muon":
        found["use_muon"] = True
    return found


def targets(plan: Plan, model: ModelSpec) -> str:
    """Names with commas between. LLaMA-Factory's `all` is every class called Linear except one named lm_head."""
    if plan.target_modules != ("all-linear",):
        return ",".join(plan.target_modules)
    linears = [x for group in model.layers for x in group.block.linears if x.kind != "parameter"]
    named = model.extra_linears or model.model_type in NAMED_TARGETS
    if not named and all(x.kind == "linear" for x in linears):
        return "all"
    return ",".join(sorted({x.name.rsplit(".", 1)[-1] for x in linears}))


def stage(plan: Plan, source: Source) -> str:
    """LLaMA-Factory's name of the task. Plain texts are learned whole, which is its pre-training."""
    if source.form == "text":
        return "pt"
    return {"orpo": "dpo", "reward": "rm"}.get(plan.task, plan.task)


def data_arguments(plan: Plan, source: Source) -> Arguments:
    """Which rows, as what text, and how long. Packing is on by itself in pre-training, so it is always written."""
    packed = {"packing": plan.packing, **({"neat_packing": True} if plan.packing and source.form != "text" else {})}
    return {
        "dataset_dir": "data",
        "dataset": "train",
        **({"eval_dataset": "eval"} if source.held_out else {}),
        "template": choose_template(source),
        "cutoff_len": plan.seq_len,
        **packed,
        **({"mask_history": True} if source.conversational and source.form == "prompt-completion" else {}),
    }


@cache
def templates() -> dict[str, str]:
    """LLaMA-Factory's chat template of every instruction-tuned model that it lists, by its name without the owner.

    Meta's models are called both Meta-Llama-3.1-8B and Llama-3.1-8B; here without Meta.
    """
    rows: dict[str, list[str]] = json.loads(template("llamafactory", "templates.json"))["templates"]
    return {model: name for name, models in rows.items() for model in models}


def choose_template(source: Source) -> str | None:
    """For conversations the model's own by name, else None: LLaMA-Factory then reads the tokenizer's; `empty` for
    plain texts."""
    if not source.conversational and source.form != "messages":
        return "empty"
    return templates().get(PurePath(source.model_ref).name.lower().removeprefix("meta-"))


def training_arguments(plan: Plan, model: ModelSpec) -> Arguments:
    """transformers' own. `warmup_steps` below 1 is a share; LLaMA-Factory sets no precision by itself."""
    compute = compute_dtype(plan)
    half: Arguments = {compute: True} if compute != "fp32" and plan.mixed_precision is not False else {}
    found: Arguments = {
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "learning_rate": learning_rate(plan, model),
        "lr_scheduler_type": plan.lr_scheduler,
        "warmup_steps": plan.warmup_ratio,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "optim": optim(plan),
        "num_train_epochs": plan.num_epochs,
        "max_steps": plan.max_steps or -1,
        "seed": plan.seed,
        **half,
        **({"use_cpu": True} if on_cpu(plan) else {}),
    }
    if plan.sharding != "none":
        found["ddp_timeout"] = NO_TIMEOUT
    if plan.sharding == "ddp" and get_method(plan.method).peft_type is not None:
        found["ddp_find_unused_parameters"] = False
    if plan.sharding.startswith("zero"):
        found["deepspeed"] = "deepspeed.json"
    return found


def optim(plan: Plan) -> str:
    """GaLore and APOLLO are made from `adamw_torch` alone; Muon has a switch of its own."""
    return "adamw_torch" if plan.method in ("galore", "apollo") or plan.optimizer == "muon" else plan.optimizer


def evaluation_arguments(plan: Plan, source: Source) -> Arguments:
    """When the held-out rows are evaluated."""
    if not source.held_out:
        return {"eval_strategy": "no"}
    found: Arguments = {
        "eval_strategy": "steps",
        "eval_on_start": True,
        "eval_steps": 1 / evaluations(plan),
        "per_device_eval_batch_size": 1 if plan.loss_kernel == "chunked" else plan.micro_batch_size,
    }
    if plan.early_stopping_patience:
        found["early_stopping_steps"] = plan.early_stopping_patience
        if plan.task == "reward":  # which LLaMA-Factory refuses to load the best checkpoint of
            found |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
        else:
            found["load_best_model_at_end"] = True
    return found


def output_arguments(plan: Plan, source: Source) -> Arguments:
    """What is written, and where. The mask of packed examples is no count of tokens, so all of a packed row count."""
    packed = plan.packing and source.form != "text"
    return {
        "output_dir": "runs/checkpoints",
        "logging_steps": 1,
        "include_num_input_tokens_seen": "all" if packed else "non_padding",
        "save_strategy": "steps",
        "save_steps": 1 / checkpoints(plan),
        "save_total_limit": 2,
        "disable_tqdm": True,
        "report_to": list(source.report_to) or "none",
    }


CHAT_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
PLAIN_COLUMNS: dict[Form, dict[str, str]] = {
    "prompt-completion": {"prompt": "prompt", "response": "completion"},
    "text": {"prompt": "text"},
    "preference": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "unpaired-preference": {"prompt": "prompt", "response": "completion", "kto_tag": "label"},
}
CHAT_COLUMNS: dict[Form, dict[str, str]] = {
    "prompt-completion": {"messages": "messages"},
    "messages": {"messages": "messages"},
    "preference": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
    "unpaired-preference": {"messages": "messages", "kto_tag": "label"},
}


def dataset_info(source: Source) -> Arguments:
    """data/dataset_info.json: what the columns of the two files are."""
    chats = source.conversational or source.form == "messages"
    row: Arguments = {"columns": (CHAT_COLUMNS if chats else PLAIN_COLUMNS)[source.form]}
    if chats:
        row |= {"formatting": "sharegpt", "tags": CHAT_TAGS}
    if source.form == "preference":
        row["ranking"] = True
    names = ("train", "eval") if source.held_out else ("train",)
    return {name: {"file_name": f"{name}.jsonl", **row} for name in names}


def deepspeed_config(plan: Plan) -> Arguments:
    """deepspeed.json: "auto" is filled in from train.yaml; what is left out keeps DeepSpeed's default."""
    zero: Arguments = {"stage": int(plan.sharding.removeprefix("zero"))}
    if plan.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if plan.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    if plan.sharding == "zero3":
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,  # the Trainer makes the optimizer
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }
