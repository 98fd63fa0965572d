"""Hugging Face: a small TRL + PEFT project, one readable script that reads config.yaml."""

from typing import Any, ClassVar

from advisor.emit.accelerate import sharding_refusal
from advisor.emit.base import Source, template
from advisor.emit.huggingface_config import METHODS, OPTIONS, SOFT_PROMPTS, build_config, generation_counts
from advisor.emit.peft_config import LORA_VARIANTS, adapter_refusal
from advisor.emit.script import TRAINING_COMMENT, ScriptEmitter, optimizer_refusal, option_refusal
from estimators.methods import get_method
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.platform import load_platforms

DEEPSPEED = "deepspeed==0.19.8"
OPTIMIZERS = {"galore": "galore-torch==1.0", "apollo": "apollo-torch==1.0.3"}


TASK_FILES = {"pretrain": "sft"}
CHANGED_BASES = frozenset({"pissa", "olora", "loftq", "corda", "eva"})  # initialisations of LoRA that PEFT takes off W


class HuggingFace(ScriptEmitter):
    """TRL 1.16, PEFT 0.21.2, transformers 5.23."""

    id = "hf"
    folder = "huggingface"
    header = """\
# Read by train.py. The sections `training`, `peft` and `quantization` are the arguments of task.py's Arguments, of the
# PEFT config of that peft_type, and of transformers.BitsAndBytesConfig, under their own names; more can be added.
"""
    comments: ClassVar = {
        "model": "A 16-bit dtype gives way to what the machine has (see precision).",
        "precision": "What is computed in: bf16, fp16, fp32, or auto for the machine's best.",
        "mixed_precision": "Autocast, and for fp16 a gradient scaler.",
        "peft": "What is trained beside the frozen model; null: parts of the model itself.",
        "loraplus_lr_ratio": "B's learning rate over A's.",
        "trained_layers": "How many of the last layers are trained.",
        "adalora": "Shares of all steps before the pruning of ranks begins, and after it ends.",
        "training": TRAINING_COMMENT,
    }

    def packages(self, plan: Plan) -> tuple[str, ...]:
        """The tested set; bitsandbytes, DeepSpeed and packages of optimizers only where the plan uses them."""
        versions = load_platforms()["hf"].versions
        quantized = plan.quantization in QUANTIZED or "8bit" in plan.optimizer or plan.optimizer.startswith("paged")
        needs = {name: version for name, version in versions.items() if name != "bitsandbytes" or quantized}
        pins = [f"{name}=={version}" for name, version in needs.items()]
        pins += [OPTIMIZERS[plan.method]] if plan.method in OPTIMIZERS else []
        return (*pins, *([DEEPSPEED] if plan.sharding.startswith("zero") else []))

    def scripts(self, plan: Plan, source: Source) -> dict[str, str]:
        """train.py, what the task is, what AdaLoRA and LoRA+ change in its trainer, and what GRPO rewards."""
        own = [f"{plan.method}.py"] if plan.method in ("adalora", "loraplus") else []
        found = {name: template(self.folder, name) for name in ("train.py", *own)}
        found["processes.py"] = template(self.folder, "processes.py")
        found["task.py"] = template(self.folder, f"tasks/{TASK_FILES.get(plan.task, plan.task)}.py")
        if plan.task == "grpo":
            found["reward.py"] = source.reward or template(self.folder, "reward.py")
        return found

    def config(self, plan: Plan, model: ModelSpec, model_ref: str) -> dict[str, Any]:
        """In the words of TRL, PEFT and transformers."""
        return build_config(plan, model, model_ref)

    def plan_refusal(self, plan: Plan, model: ModelSpec) -> str | None:
        """What TRL, PEFT and transformers cannot do, and methods that are not emitted yet."""
        return (
            _task_refusal(plan)
            or _method_refusal(plan)
            or _precision_refusal(plan)
            or _fixed_refusal(plan)
            or sharding_refusal(plan)
        )


def _task_refusal(plan: Plan) -> str | None:
    """What TRL's trainers of the other tasks do not take, or learn wrongly."""
    options = LORA_VARIANTS.get(plan.method, {}) | plan.method_options
    start = str(options.get("init_lora_weights", ""))
    if plan.task in ("dpo", "kto") and start.partition("_")[0] in CHANGED_BASES:
        return f"{plan.task} measures against the model without its adapter, and {start} changes that model's weights"
    if plan.task == "kto" and plan.micro_batch_size < 2:
        return "KTO pairs prompts with other answers of the micro-batch: TRL takes none of fewer than 2"
    if plan.task == "grpo" and not generation_counts(plan):
        return f"GRPO compares 2 to 8 samples of a prompt, none of which divides the {plan.global_batch_size} of a step"
    if plan.method in SOFT_PROMPTS and plan.task not in ("sft", "pretrain"):
        return f"{plan.method} is emitted for sft and pretrain only"
    return None


def _method_refusal(plan: Plan) -> str | None:
    """Methods without a script, and options that the method does not know or cannot take here."""
    if plan.method not in METHODS:
        return f"{plan.method} is not emitted for Hugging Face yet, only {', '.join(sorted(METHODS))}"
    reason = option_refusal(plan, OPTIONS.get(plan.method, frozenset())) or adapter_refusal(plan)
    if reason is not None:
        return reason
    initial = str(plan.method_options.get("init_lora_weights", ""))
    if plan.quantization in QUANTIZED and (initial.startswith("pissa") or initial == "loftq"):
        return f"init_lora_weights={initial!r} starts from the float weights, which a {plan.quantization} base has not"
    if "lm_head" in plan.target_modules:
        return "TRL's fused loss reads lm_head.weight directly, so an adapter on lm_head would never be trained"
    if plan.quantization in QUANTIZED and get_method(plan.method).peft_type is None:
        return f"transformers trains a {plan.quantization} base through adapters only, and {plan.method} has none"
    return None


def _precision_refusal(plan: Plan) -> str | None:
    compute, stored = plan.compute_dtype, plan.quantization
    if stored in ("bf16", "fp16") and compute not in (None, stored):
        return f"weights in {stored} are computed in {stored}; for {compute} load them as fp32"
    if stored == "fp32" and compute in ("bf16", "fp16") and plan.mixed_precision is False:
        return f"weights in fp32 are computed in {compute} by autocast only, and mixed_precision is off"
    if compute == "fp16" and plan.adapter_dtype not in (None, "fp32"):
        return f"fp16's gradient scaler needs fp32 adapters, not {plan.adapter_dtype}"
    if plan.kbit_prepared and stored not in QUANTIZED:
        return "kbit_prepared is for a quantised base"
    return None


def _fixed_refusal(plan: Plan) -> str | None:
    """What TRL's trainer decides by itself."""
    if plan.gradient_checkpointing == "unsloth":
        return "gradient_checkpointing 'unsloth' exists in Unsloth only"
    if plan.loss_kernel not in (None, "fused"):
        return f"TRL 1.16 always computes the loss from a fused LM head, never from {plan.loss_kernel} logits"
    if plan.fused_ops:
        return "no script here turns Liger's kernels on for TRL: leave fused_ops out"
    if plan.keep_outputs:
        return "TRL's trainer does not keep the model's outputs"
    return optimizer_refusal(plan)


EMITTER = HuggingFace()
