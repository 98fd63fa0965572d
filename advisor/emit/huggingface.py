"""Hugging Face: a small TRL + PEFT project, one readable script that reads config.yaml."""

from typing import Any

import yaml

from advisor.emit import huggingface_config as config
from advisor.emit.accelerate import accelerate_config, sharding_refusal
from advisor.emit.base import Emitter, Forecast, Source, template
from advisor.emit.readme import readme
from advisor.emit.yaml_text import dump_commented
from estimators.methods import get_method
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.platform import load_platforms

DEEPSPEED = "deepspeed==0.19.8"
FORMS = {"sft": ("prompt-completion", "messages", "text"), "pretrain": ("text",)}

HEADER = """\
# Read by train.py. The sections `training`, `peft` and `quantization` are the arguments of trl.SFTConfig, the PEFT
# config of that peft_type, and transformers.BitsAndBytesConfig, under their own names; more of theirs can be added.
"""
COMMENTS = {
    "model": "A 16-bit dtype gives way to what the machine has (see precision).",
    "precision": "What is computed in: bf16, fp16, fp32, or auto for the machine's best.",
    "mixed_precision": "Autocast, and for fp16 a gradient scaler.",
    "peft": "What is trained beside the frozen model; null: parts of the model itself.",
    "adalora": "Shares of all steps before the pruning of ranks begins, and after it ends.",
    "training": "eval_steps, save_steps and warmup_steps below 1 are shares of the whole run.",
}


class HuggingFace(Emitter):
    """TRL 1.16 SFTTrainer, PEFT 0.21.2, transformers 5.23."""

    id = "hf"

    def packages(self, plan: Plan) -> tuple[str, ...]:
        """The tested set; bitsandbytes and DeepSpeed only where the plan uses them."""
        versions = load_platforms()["hf"].versions
        quantized = plan.quantization in QUANTIZED or "8bit" in plan.optimizer or plan.optimizer.startswith("paged")
        needs = {name: version for name, version in versions.items() if name != "bitsandbytes" or quantized}
        pins = [f"{name}=={version}" for name, version in needs.items()]
        return (*pins, *([DEEPSPEED] if plan.sharding.startswith("zero") else []))

    def refusal(self, plan: Plan, model: ModelSpec, source: Source) -> str | None:
        """What TRL, PEFT and transformers cannot do, and what is not emitted yet."""
        forms = FORMS.get(plan.task)
        if forms is None:
            return f"the task {plan.task} is not emitted for Hugging Face yet, only {' and '.join(FORMS)}"
        if model.kind != "causal-lm":
            return f"{model.name} is an {model.kind}: only causal language models are emitted"
        if source.form not in forms:
            return f"the task {plan.task} needs rows of {' or '.join(forms)}, not {source.form}"
        return _method_refusal(plan) or _precision_refusal(plan) or _fixed_refusal(plan) or sharding_refusal(plan)

    def command(self, plan: Plan) -> tuple[str, ...]:
        """`python train.py`, through accelerate where there are several cards."""
        if plan.n_gpus == 1:
            return ("python", "train.py")
        return ("python", "-m", "accelerate.commands.launch", "--config_file", "accelerate.yaml", "train.py")

    def files(self, plan: Plan, model: ModelSpec, source: Source, forecast: Forecast | None) -> dict[str, str]:
        """Script, settings, versions and a page to read; the values stand in YAML only, never in code."""
        parts = ["train.py", *(["adalora.py"] if plan.method == "adalora" else [])]
        found = {"progress.py": template("common", "progress.py")}
        found |= {name: template("huggingface", name) for name in parts}
        found["config.yaml"] = dump_config(config.build_config(plan, model, source.model_ref))
        found["requirements.txt"] = "\n".join(self.packages(plan)) + "\n"
        if plan.n_gpus > 1:
            found["accelerate.yaml"] = yaml.safe_dump(accelerate_config(plan), sort_keys=False)
        trainable = get_method(plan.method).trainable_parameters(model, plan)
        found["README.md"] = readme(plan, model, source, trainable, " ".join(self.command(plan)), forecast)
        return found


def _method_refusal(plan: Plan) -> str | None:
    """Methods without a script, and options that the method does not know or cannot take here."""
    if plan.method not in config.METHODS:
        return f"{plan.method} is not emitted for Hugging Face yet, only {', '.join(sorted(config.METHODS))}"
    known = config.METHOD_OPTIONS.get(plan.method, frozenset())
    unknown = sorted(set(plan.method_options) - known)
    if unknown:
        return f"{plan.method} knows no option {', '.join(unknown)}" + (
            f" (it knows {', '.join(sorted(known))})" * bool(known)
        )
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
    if plan.optimizer in ("muon", "adamw_torch_forloop"):
        return f"transformers 5.23 has no optim named {plan.optimizer}"
    if plan.keep_outputs:
        return "TRL's trainer does not keep the model's outputs"
    if not plan.zero_grad_set_to_none:
        return "transformers' Trainer always frees gradients (zero_grad_set_to_none)"
    return None


def dump_config(values: dict[str, Any]) -> str:
    """YAML with a comment above the sections that need one, and a blank line between them."""
    return "\n".join([HEADER, *(dump_commented({key: value}, COMMENTS) for key, value in values.items())])


EMITTER = HuggingFace()
