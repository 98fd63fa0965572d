"""Unsloth: a small script over FastLanguageModel and TRL. Written from its sources; run on an H200."""

from typing import Any, ClassVar

from advisor.axes import UNSLOTH_OFFLOADS_FROM
from advisor.emit.accelerate import sharding_refusal
from advisor.emit.base import Forecast, Source
from advisor.emit.peft_config import LORA_OPTIONS, LORA_VARIANTS
from advisor.emit.script import TRAINING_COMMENT, ScriptEmitter, optimizer_refusal, option_refusal
from advisor.emit.unsloth_config import build_config, module_names
from advisor.plans import unsloth_layers_refusal
from estimators.methods import get_method
from estimators.methods.base import target_linears
from estimators.regime import runs_unsloth_layers
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.platform import PlatformSpec, load_platforms

METHODS = frozenset({*LORA_VARIANTS, "full"}) - {"loraplus"}
STARTS = ("True", "False", "gaussian", "pissa")  # of an adapter, that need nothing computed before
NEVER_PACKED = frozenset({"gemma2"})  # trainer.py PADDING_FREE_BLOCKLIST, of the families with layers of Unsloth's own

NOTES = """\
## What was run

Projects like this one were run for 6 to 12 steps on one NVIDIA H200 (torch 2.11.0, the other packages as pinned): LoRA
over bf16, QLoRA and full fine-tuning of Llama and, LoRA alone, of Qwen 2.5, with random weights. Gemma 2 was still
compiling after 150 s. What was not run: other models and cards, several cards, fp16, int8, DoRA, rsLoRA, PiSSA, plain
text. There the arguments were only checked against the signatures of the pinned releases. Try it with `max_steps: 5`
first.

## Licences

Unsloth's wheels name Apache-2.0 (unsloth) and LGPL-3.0-or-later (unsloth_zoo) in their metadata, but many of their
files, some of them in the training path, carry an AGPL-3.0 header. This project imports both and copies nothing of
them. Whether that matters to you is for you to judge.
"""


class Unsloth(ScriptEmitter):
    """Unsloth 2026.10.7 with TRL 1.15, PEFT 0.21.2, transformers 5.17."""

    id = "unsloth"
    folder = "unsloth"
    header = """\
# Read by train.py. The sections `model` and `adapter` are the arguments of FastLanguageModel.from_pretrained and
# .get_peft_model, `training` those of trl.SFTConfig, under their own names; more of theirs can be added.
"""
    comments: ClassVar = {
        "model": "use_exact_model_name: false would load a copy of Unsloth's own that is quantised already.",
        "precision": "What is computed in: bf16, fp16, or auto for the machine's best.",
        "adapter": "What is trained beside the frozen model; null: the model itself.",
        "expandable_segments": "Of CUDA's memory; Unsloth's own default is true.",
        "training": TRAINING_COMMENT
        + "\n# padding_free: null would join the rows of a batch, which is faster; the forecast is of padded rows.",
    }

    def packages(self, plan: Plan) -> tuple[str, ...]:
        """The set whose sources were read."""
        return tuple(f"{name}=={version}" for name, version in load_platforms()["unsloth"].versions.items())

    def config(self, plan: Plan, model: ModelSpec, model_ref: str) -> dict[str, Any]:
        """In the words of Unsloth and TRL."""
        return build_config(plan, model, model_ref)

    def files(self, plan: Plan, model: ModelSpec, source: Source, forecast: Forecast | None) -> dict[str, str]:
        """What all projects of a script have; the page says what was run, and the licences."""
        found = super().files(plan, model, source, forecast)
        return {**found, "README.md": f"{found['README.md']}\n{NOTES}"}

    def plan_refusal(self, plan: Plan, model: ModelSpec) -> str | None:
        """What Unsloth cannot do, does by itself, or could not be checked."""
        platform = load_platforms()["unsloth"]
        return (
            _method_refusal(plan, platform)
            or _precision_refusal(plan, platform)
            or _fixed_refusal(plan)
            or _layers_refusal(plan, model)
            or _sharding_refusal(plan)
        )


def _method_refusal(plan: Plan, platform: PlatformSpec) -> str | None:
    support = platform.methods.get(plan.method)
    if support is not None and support.verified == "no":
        return f"{platform.version} has no {plan.method}: {support.evidence}"
    if plan.method not in METHODS:
        return f"{plan.method} is not emitted for Unsloth, only {', '.join(sorted(METHODS))}"
    options = LORA_VARIANTS.get(plan.method, {}) | plan.method_options
    start = str(options.get("init_lora_weights", True)).partition("_niter_")[0]
    if start not in STARTS:
        return f"init_lora_weights={start!r} was not checked on Unsloth"
    if start == "pissa" and plan.quantization in QUANTIZED:
        return f"pissa starts from the float weights, which a {plan.quantization} base has not"
    return option_refusal(plan, LORA_OPTIONS if plan.method in ("lora", "qlora") else frozenset())


def _precision_refusal(plan: Plan, platform: PlatformSpec) -> str | None:
    stored, compute, full = plan.quantization, plan.compute_dtype, plan.method == "full"
    support = platform.quantizations[stored]
    if support.verified == "no":
        return f"{platform.version} has no {stored}: {support.evidence}"
    if compute == "fp32" or (stored not in QUANTIZED and compute not in (None, stored)):
        return f"Unsloth computes in the 16-bit type that {stored} weights are loaded for, not in {compute}"
    if full and stored == "fp16":
        return "Unsloth makes fp32 weights of fp16 ones to train them; bf16 it trains as they are"
    if plan.mixed_precision is False or (full and plan.mixed_precision):
        return "Unsloth chooses autocast by itself: on for adapters, in full fine-tuning of bf16 weights its own"
    if plan.adapter_dtype not in (None, "fp32"):
        return f"Unsloth keeps adapters in fp32, not {plan.adapter_dtype}"
    if plan.kbit_prepared:
        return "Unsloth prepares a quantised base its own way, not by prepare_model_for_kbit_training"
    return None


def _fixed_refusal(plan: Plan) -> str | None:
    """What Unsloth decides by itself."""
    if plan.attention != "auto":
        return f"Unsloth chooses its attention code by itself, {plan.attention} cannot be asked for"
    if plan.gradient_checkpointing == "unsloth" and plan.seq_len < UNSLOTH_OFFLOADS_FROM:
        return f"Unsloth offloads checkpoints from {UNSLOTH_OFFLOADS_FROM} tokens on; below, it is checkpointing 'full'"
    if plan.reentrant is False:
        return "Unsloth's checkpoints are always reentrant"
    if plan.fused_ops is not None:
        return "Unsloth has kernels of its own: leave fused_ops out"
    if plan.loss_kernel not in (None, "chunked"):
        return f"Unsloth computes the loss in chunks of its own, never from {plan.loss_kernel} logits"
    if plan.use_cache:
        return "Unsloth turns the key-value cache off to train"
    if plan.keep_outputs:
        return "Unsloth's trainer does not keep the model's outputs"
    return optimizer_refusal(plan)


def _layers_refusal(plan: Plan, model: ModelSpec) -> str | None:
    """What this model's layers do not allow."""
    if get_method(plan.method).peft_type:
        missed = unsloth_layers_refusal(plan, model)
        if missed is not None:
            return missed
        named = plan.replace(target_modules=module_names(plan, model))
        if target_linears(model, named) != target_linears(model, plan):
            return f"Unsloth knows modules by their last name, and {', '.join(named.target_modules)} means others too"
    if plan.packing and (not runs_unsloth_layers(plan, model) or model.model_type in NEVER_PACKED):
        return f"packing on Unsloth was not checked for {model.model_type} and {plan.method} over {plan.quantization}"
    return None


def _sharding_refusal(plan: Plan) -> str | None:
    if plan.sharding not in ("none", "ddp"):
        return f"{plan.sharding} on Unsloth could not be checked without GPUs; ddp is what its loader is written for"
    return sharding_refusal(plan)


EMITTER = Unsloth()
