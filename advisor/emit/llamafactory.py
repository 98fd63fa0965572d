"""LLaMA-Factory: its own YAML, which its command line takes too, and a short script that reports and resumes."""

import json
from typing import Any

import yaml

from advisor.emit import llamafactory_config as config
from advisor.emit.accelerate import accelerate_config, sharding_refusal
from advisor.emit.base import Emitter, Forecast, Source, template
from advisor.emit.llamafactory_rows import adapt_row
from advisor.emit.readme import readme
from advisor.emit.script import task_refusal
from advisor.emit.yaml_text import dump_commented
from advisor.plans import storage_refusal
from estimators.methods import get_method
from estimators.regime import LIGER_FAMILIES
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.platform import load_platforms

OPTIMIZER_PACKAGES = {"galore": "galore-torch==1.0", "apollo": "apollo-torch==1.0.3", "badam": "badam==1.4"}
DEEPSPEED = "deepspeed==0.19.8"
LIGER = "liger-kernel==0.8.5"

HEADER = """\
# All keys are LLaMA-Factory's own, so `llamafactory-cli train train.yaml` reads this file too. train.py reads it, puts
# another precision in where the machine lacks this one, reports progress, and brings the result to model/.
"""
COMMENTS = {
    "model_name_or_path": "Loaded in the dtype that it is stored in: there is no key for another.",
    "quantization_bit": "The frozen base is quantised by bitsandbytes while it is loaded.",
    "enable_liger_kernel": "Fused kernels of the package liger-kernel: the loss keeps no logits.",
    "flash_attn": "Which attention: sdpa is PyTorch's own, disabled is eager code, fa2 FlashAttention 2.",
    "disable_gradient_checkpointing": "Checkpointing keeps only the layers' inputs; LLaMA-Factory does it by default.",
    "use_unsloth_gc": "The checkpoints wait in main memory.",
    "lora_target": "all: every linear layer but the head. OFT's targets are read from this key too.",
    "use_galore": "An AdamW of its own, which LLaMA-Factory makes from optim adamw_torch only.",
    "use_apollo": "An AdamW of its own, which LLaMA-Factory makes from optim adamw_torch only.",
    "use_badam": "One layer is trained at a time, each for 50 steps.",
    "use_muon": "Muon for matrices inside the layers, its own AdamW for the rest; optim is not used.",
    "pissa_iter": "-1: an exact decomposition, which a resumed run repeats exactly.",
    "pissa_convert": "The result is a plain LoRA adapter for the unchanged model.",
    "freeze_trainable_layers": "Counted from the last layer.",
    "template": "The chat template by LLaMA-Factory's name; null: the tokenizer's own; empty: plain texts.",
    "packing": "On by itself in pre-training unless it is named.",
    "neat_packing": "Keeps packed examples apart in the attention.",
    "mask_history": "Only the last answer is learned: the turns before it are the prompt.",
    "warmup_steps": "Below 1: a share of all steps, as eval_steps and save_steps are.",
    "bf16": "Autocast; without this key LLaMA-Factory computes in the dtype of the weights.",
    "fp16": "Autocast with a gradient scaler; without this key LLaMA-Factory computes in the dtype of the weights.",
    "ddp_timeout": "Seconds: the other cards wait while the first one reads the data.",
    "per_device_eval_batch_size": "8, its default, could need more memory than training; 1 under Liger (whole logits).",
    "early_stopping_steps": "Evaluations without a gain before the run stops.",
    "metric_for_best_model": "What early stopping looks at; the last state is kept, for no best one is loaded here.",
    "include_num_input_tokens_seen": "Counts tokens; non_padding: without padding.",
}


class LlamaFactory(Emitter):
    """LLaMA-Factory 0.9.5 with transformers 5.6, PEFT 0.18.1, TRL 0.24."""

    id = "llamafactory"

    def packages(self, plan: Plan) -> tuple[str, ...]:
        """The tested set; bitsandbytes, DeepSpeed and the optimizers' packages only where the plan uses them."""
        versions = load_platforms()[self.id].versions
        bitsandbytes = plan.quantization in QUANTIZED or any(x in plan.optimizer for x in ("8bit", "paged", "lion"))
        pins = [f"{name}=={version}" for name, version in versions.items() if name != "bitsandbytes" or bitsandbytes]
        pins += [OPTIMIZER_PACKAGES[plan.method]] if plan.method in OPTIMIZER_PACKAGES else []
        pins += [LIGER] if plan.loss_kernel == "chunked" else []
        return (*pins, *([DEEPSPEED] if plan.sharding.startswith("zero") else []))

    def adapt_row(self, example: dict[str, Any]) -> dict[str, Any]:
        """Conversations become one list of messages."""
        return adapt_row(example)

    def refusal(self, plan: Plan, model: ModelSpec, source: Source) -> str | None:
        """What LLaMA-Factory cannot do, and what is not emitted."""
        return (
            _task_refusal(plan, model, source)
            or _method_refusal(plan, model)
            or _precision_refusal(plan, model)
            or _fixed_refusal(plan, model)
            or _optimizer_refusal(plan)
            or _sharding_refusal(plan)
        )

    def command(self, plan: Plan) -> tuple[str, ...]:
        """`python train.py`; through torchrun with several cards or DeepSpeed, for FSDP2 through accelerate."""
        if plan.sharding == "none":
            return ("python", "train.py")
        if plan.sharding == "fsdp2":
            return ("python", "-m", "accelerate.commands.launch", "--config_file", "accelerate.yaml", "train.py")
        torchrun = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(plan.n_gpus))
        return (*torchrun, "train.py")

    def files(self, plan: Plan, model: ModelSpec, source: Source, forecast: Forecast | None) -> dict[str, str]:
        """Scripts, settings, the description of the data, versions and a page to read; values stand in YAML and JSON
        only, never in code."""
        found = {name: template("common", name) for name in ("general.py", "progress.py")}
        found["train.py"] = template("llamafactory", "train.py")
        found["train.yaml"] = dump_arguments(config.build_arguments(plan, model, source))
        found["data/dataset_info.json"] = json.dumps(config.dataset_info(source), indent=2) + "\n"
        found["requirements.txt"] = "\n".join(self.pins(plan, source)) + "\n"
        if plan.sharding == "fsdp2":
            found["accelerate.yaml"] = yaml.safe_dump(accelerate_config(plan), sort_keys=False)
        if plan.sharding.startswith("zero"):
            found["deepspeed.json"] = json.dumps(config.deepspeed_config(plan), indent=2) + "\n"
        trainable = get_method(plan.method).trainable_parameters(model, plan)
        command = " ".join(self.command(plan))
        notes = _notes(plan, source)
        found["README.md"] = readme(
            plan, model, source, trainable, command, forecast, settings="train.yaml", notes=notes
        )
        return found


def dump_arguments(sections: dict[str, config.Arguments]) -> str:
    """YAML in sections, with a comment above the keys that need one."""
    parts = [f"### {name}\n{dump_commented(values, COMMENTS)}" for name, values in sections.items()]
    return "\n".join([HEADER, *parts])


def _notes(plan: Plan, source: Source) -> list[str]:
    if plan.sharding == "fsdp2":
        return []
    run = (
        "`llamafactory-cli train train.yaml`"
        if plan.sharding == "none"
        else "`FORCE_TORCHRUN=1 llamafactory-cli train ...`"
    )
    plain = source.form != "text" and config.choose_template(source) == "empty"
    return [
        f"{run} trains the same way, without progress and with the result in `runs/checkpoints`"
        + (", and without the tokens that begin and end a text" if plain else "")
    ]


def _task_refusal(plan: Plan, model: ModelSpec, source: Source) -> str | None:
    reason = task_refusal(plan, model, source)
    if reason is not None:
        return reason
    if plan.method == "pissa" and plan.task in ("dpo", "kto"):
        return f"LLaMA-Factory has no reference model for PiSSA, whose base is changed, which {plan.task} needs"
    if plan.early_stopping_patience and not source.held_out:
        return "early stopping needs held-out rows: eval_fraction is 0"
    return None


def _method_refusal(plan: Plan, model: ModelSpec) -> str | None:
    """Methods and options without a key, and names that its lists with commas cannot hold."""
    if plan.method not in config.FINETUNING_TYPES:
        known = ", ".join(sorted(config.FINETUNING_TYPES))
        return f"{plan.method} is not emitted for LLaMA-Factory, which knows lora, oft, freeze and full: {known}"
    options = config.METHOD_OPTIONS.get(plan.method, frozenset())
    unknown = sorted(set(plan.method_options) - options)
    if unknown:
        return f"{plan.method} knows no option {', '.join(unknown)}" + (
            f" (it knows {', '.join(sorted(options))})" * bool(options)
        )
    saved = plan.method_options.get("modules_to_save") or ()
    for name in (*plan.target_modules, *((saved,) if isinstance(saved, str) else saved)):
        if "," in name or name != name.strip() or name == "all":
            return f"LLaMA-Factory takes module names with commas between, which {name!r} would break"
    if "all-linear" in plan.target_modules and len(plan.target_modules) > 1:
        return "LLaMA-Factory takes all linear layers or a list of names, not both"
    if plan.lora_alpha is not None and not float(plan.lora_alpha).is_integer():
        return f"LLaMA-Factory's lora_alpha is a whole number, not {plan.lora_alpha}"
    if model.model_type == "gpt_oss":
        return "LLaMA-Factory runs gpt-oss on a FlashAttention 3 kernel from the hub only, whatever the settings say"
    conv1d = any(x.kind == "conv1d" for group in model.layers for x in group.block.linears)
    if plan.method in ("galore", "apollo") and conv1d:
        return f"LLaMA-Factory projects nn.Linear only, and the layers of {model.name} are Conv1D"
    return None


def _precision_refusal(plan: Plan, model: ModelSpec) -> str | None:
    compute, stored, method = plan.compute_dtype, plan.quantization, get_method(plan.method)
    masters = method.peft_type is None and not method.in_half
    if stored in ("bf16", "fp16") and compute not in (None, stored):
        return f"weights in {stored} are computed in {stored}"
    if stored in QUANTIZED and compute == "fp32" and not config.on_cpu(plan):
        return "LLaMA-Factory computes a quantised base in 16 bits on a GPU"
    if plan.mixed_precision is False and masters and config.compute_dtype(plan) != "fp32":
        return (
            f"LLaMA-Factory keeps what {plan.method} trains in fp32, so {config.compute_dtype(plan)} needs its autocast"
        )
    if stored == "fp32" and compute in ("bf16", "fp16") and plan.mixed_precision is False:
        return f"weights in fp32 are computed in {compute} by autocast only, and mixed_precision is off"
    if plan.adapter_dtype not in (None, "fp32"):
        return f"LLaMA-Factory keeps adapters in fp32, not {plan.adapter_dtype}"
    if plan.kbit_prepared:
        return "LLaMA-Factory does not call prepare_model_for_kbit_training"
    return storage_refusal(plan.method, stored, config.compute_dtype(plan), model)


def _fixed_refusal(plan: Plan, model: ModelSpec) -> str | None:
    """What LLaMA-Factory decides by itself."""
    if plan.loss_kernel == "fused":
        return "LLaMA-Factory computes the loss from all logits, or with Liger in chunks; fused is TRL's"
    if plan.loss_kernel == "chunked" and config.on_cpu(plan):
        return "Liger's kernels need a GPU"
    if plan.loss_kernel == "chunked" and model.model_type not in LIGER_FAMILIES:
        return f"LLaMA-Factory has no Liger kernels for {model.model_type}, only {', '.join(sorted(LIGER_FAMILIES))}"
    if plan.fused_ops is not None:
        return "LLaMA-Factory turns all of Liger's kernels on, with loss_kernel chunked: leave fused_ops out"
    if plan.gradient_checkpointing == "unsloth" and config.on_cpu(plan):
        return "checkpoints that wait in main memory come back to a GPU, which this plan has not"
    if plan.keep_outputs:
        return "transformers' Trainer does not keep the model's outputs"
    if plan.use_cache:
        return "LLaMA-Factory turns the KV cache off while it trains"
    if not plan.zero_grad_set_to_none:
        return "transformers' Trainer always frees gradients (zero_grad_set_to_none)"
    return None


def _optimizer_refusal(plan: Plan) -> str | None:
    if plan.optimizer == "adamw_torch_forloop" and plan.method not in ("galore", "apollo"):
        return "transformers 5.6 has no optim named adamw_torch_forloop"
    if plan.optimizer == "muon":
        if plan.method in ("loraplus", "badam"):
            return f"LLaMA-Factory makes {plan.method}'s own optimizer and would leave use_muon aside"
        if plan.sharding not in ("none", "ddp"):
            return f"Muon orthogonalises whole matrices, which {plan.sharding} splits"
    return None


def _sharding_refusal(plan: Plan) -> str | None:
    if plan.method == "pissa" and plan.sharding in ("fsdp2", "zero3"):
        return f"PiSSA decomposes whole weights as they are loaded, which {plan.sharding} splits"
    return sharding_refusal(plan)


EMITTER = LlamaFactory()
