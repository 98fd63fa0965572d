"""axolotl's YAML (`axolotl train FILE`), as release 0.19.0 reads it: utils/schemas/*.py, loaders/model.py.

Its trainer is transformers' own, so a plan names Hugging Face, with the model's own loss and PEFT's fp32 adapters.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from advisor.readers.base import OpenFile, Reader, Reading, Words, make_plan
from advisor.readers.document import Document
from advisor.readers.placement import Placement, read_placement
from advisor.readers.training_arguments import scheduler_of
from profiles.config_keys import load_key_tables
from profiles.plan import QUANTIZED, Plan

TASKS = {"dpo": "dpo", "gdpo": "dpo", "ipo": "dpo", "simpo": "dpo", "orpo": "orpo", "kto": "kto", "grpo": "grpo"}
# utils/schemas/enums.py LEGACY_ATTN_FLAG_TO_IMPL
LEGACY_ATTENTION = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
LIGER_KERNELS = {"liger_rms_norm": "norm", "liger_rope": "rotary", "liger_glu_activation": "activation"}
LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
PLAN_KEYS = {
    "model": "base_model",
    "micro_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "seq_len": "sequence_len",
    "lora_rank": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "num_epochs": "num_epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "optimizer": "optimizer",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "eval_fraction": "val_set_size",
    "early_stopping_patience": "early_stopping_patience",
    "seed": "seed",
    "attention": "attn_implementation",
}


def _batch_words(plan: Plan) -> dict[str, str]:
    return {
        "micro_batch_size": str(plan.micro_batch_size),
        "gradient_accumulation_steps": str(plan.gradient_accumulation_steps),
    }


class Axolotl(Reader):
    """Files for `axolotl train`."""

    id = "axolotl"
    title = "axolotl"
    keys: ClassVar = PLAN_KEYS
    words: ClassVar[Words] = {
        "micro_batch_size": _batch_words,
        "gradient_accumulation_steps": _batch_words,
        "seq_len": lambda plan: {"sequence_len": str(plan.seq_len)},
        "gradient_checkpointing": lambda plan: {"gradient_checkpointing": "true"},
        "loss_kernel": lambda plan: {
            "plugins": "[axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]",
            "cut_cross_entropy": "true",
        },
        "optimizer": lambda plan: {"optimizer": plan.optimizer},
        "method": lambda plan: {"adapter": "qlora" if plan.quantization in QUANTIZED else "lora"},
        "quantization": lambda plan: (
            {"load_in_4bit": "true", "adapter": "qlora"} if plan.quantization in QUANTIZED else {"bf16": "auto"}
        ),
        "sharding": lambda plan: {"fsdp_version": "2", "fsdp_config": "{reshard_after_forward: true, ...}"},
    }

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """Its name for the model."""
        return "base_model" in content

    def read(self, content: Mapping[str, Any], open_file: OpenFile) -> Reading:
        """Translate a file's keys."""
        doc = Document(content, load_key_tables()["axolotl"], refuses_unknown=False)
        model = doc.text("base_model")
        if not model:
            raise doc.refusal("base_model", "is no model")
        fields = {"model": model, "platform": "hf", **_schedule(doc)}
        fields |= _method(doc) | _base(doc) | _step(doc)
        kind = doc.text("rl")
        task = TASKS.get(kind) if kind else "reward" if doc.flag("reward_model") else "sft"
        pretrains = doc.get("pretraining_dataset") is not None
        fields["task"] = "pretrain" if task == "sft" and pretrains else task or "sft"
        unjudged = doc.void() or ("" if task else f"rl {kind}: its memory and speed are not estimated")
        placement = _placement(doc, open_file)
        by_card = fields.pop("by_card")
        plan = make_plan(fields, PLAN_KEYS)
        _check(doc, plan)
        size = doc.integer("eval_batch_size", plan.micro_batch_size)
        evaluates = plan.eval_fraction > 0 or doc.get("test_datasets") is not None
        return Reading(
            format=self.id,
            release=doc.table.release,
            plan=plan,
            unjudged=unjudged,
            n_gpus=placement.n_gpus,
            sharding=placement.sharding,
            offload_optimizer=placement.offload_optimizer,
            offload_parameters=placement.offload_parameters,
            float_by_card=by_card,
            eval_batch_size=size if evaluates else None,
            findings=doc.close(),
            keys=doc.notes(),
        )


def _schedule(doc: Document) -> dict[str, Any]:
    """Batch, schedule and optimizer. Of micro_batch_size, gradient_accumulation_steps and batch_size two say all."""
    micro, accumulation = doc.integer("micro_batch_size", 1), doc.integer("gradient_accumulation_steps", 1)
    batch = doc.integer("batch_size", 0)
    if batch and "gradient_accumulation_steps" not in doc and micro > 0:
        accumulation = max(1, batch // micro)
    max_steps = doc.integer("max_steps", -1)
    steps, ratio = doc.number("warmup_steps", 0), doc.number("warmup_ratio", 0.03)
    if "learning_rate" not in doc:
        doc.error("learning_rate", "is missing, and axolotl has no default", "learning_rate: 0.0002")
    doc.strategy("save_strategy")
    doc.strategy("eval_strategy")
    share = doc.number("val_set_size", 0.0)
    return {
        "micro_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_epochs": doc.number("num_epochs", 1.0),
        "max_steps": max_steps if max_steps > 0 else None,
        "learning_rate": doc.number("learning_rate", 0.0002),
        "lr_scheduler": scheduler_of(doc.text("lr_scheduler", "cosine")),
        "warmup_ratio": steps / max_steps if 0 < steps < max_steps else ratio if 0 <= ratio < 1 else 0.0,
        "optimizer": doc.text("optimizer", "adamw_torch_fused"),
        "weight_decay": doc.number("weight_decay", 0.0),
        "max_grad_norm": doc.number("max_grad_norm", 1.0),
        "seed": doc.integer("seed", 42),
        "eval_fraction": share if 0 < share < 1 else 0.0,
        "early_stopping_patience": doc.integer("early_stopping_patience", 0),
    }


def _method(doc: Document) -> dict[str, Any]:
    adapter = doc.text("adapter")
    rank, alpha = doc.integer("lora_r", 8), doc.number("lora_alpha", 8)
    dropout, targets = doc.number("lora_dropout", 0.0), doc.names("lora_target_modules")
    saved, start = doc.names("lora_modules_to_save"), doc.get("peft_init_lora_weights")
    variants = (
        ("dora", doc.flag("peft_use_dora")),
        ("pissa", str(start).startswith("pissa")),
        ("loraplus", doc.number("loraplus_lr_ratio", 0) > 0),
        ("rslora", doc.flag("peft_use_rslora")),
    )
    linear, fp32 = doc.flag("lora_target_linear"), doc.flag("peft_autocast_adapter_dtype", True)
    kernels = [doc.get(key) for key in LORA_KERNELS]
    if not adapter:
        return {"method": "full"}
    if adapter not in ("lora", "qlora"):
        doc.error("adapter", f"{adapter} needs a plugin that brings it", "adapter: lora or qlora")
    if not linear and not targets:
        doc.error("lora_target_linear", "no module takes an adapter", "lora_target_linear: true")
    if dropout == 0 and any(value is not False for value in kernels):
        doc.leave("lora_mlp_kernel", "is on where lora_dropout is 0: these kernels need less than is counted")
    return {
        "method": next((name for name, on in variants if on), "lora"),
        "lora_rank": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": ("all-linear",) if linear or not targets else targets,
        "adapter_dtype": "fp32" if fp32 else None,
        "method_options": {"modules_to_save": list(saved)} if saved else {},
    }


def _base(doc: Document) -> dict[str, Any]:
    """utils/config resolve_dtype: bf16 "auto" is bf16 where the card has it, else fp16."""
    bf16 = doc.get("bf16") if "bf16" in doc.content else "auto"
    if bf16 in (None, ""):
        bf16 = "auto"
    if bf16 not in ("auto", "full", True, False):
        raise doc.refusal("bf16", "is none of auto, full, true, false")
    fp16, pure = doc.flag("fp16"), doc.flag("bfloat16")
    half = doc.flag("float16")
    by_card = bf16 == "auto" and not fp16
    plain = "bf16" if bf16 is True or bf16 == "full" or by_card or pure else "fp16" if fp16 or half else "fp32"
    autocast = bf16 in ("auto", True) or fp16 or pure
    fields: dict[str, Any] = {"quantization": plain, "mixed_precision": autocast, "by_card": by_card}
    four, eight, options = doc.flag("load_in_4bit"), doc.flag("load_in_8bit"), doc.mapping("bnb_config_kwargs")
    if four:
        kind, double = options.get("bnb_4bit_quant_type", "nf4"), options.get("bnb_4bit_use_double_quant", True)
        fields["quantization"] = "fp4" if kind == "fp4" else "nf4-dq" if double else "nf4"
    elif eight:
        fields["quantization"] = "int8"
    if (four or eight) and not by_card:
        fields["compute_dtype"] = plain
    return fields


def _step(doc: Document) -> dict[str, Any]:
    checkpointing = doc.get("gradient_checkpointing")
    if checkpointing not in (None, True, False, "true", "false", "offload", "offload_disk"):
        raise doc.refusal("gradient_checkpointing", "is none of true, false, offload, offload_disk")
    offloads = checkpointing in ("offload", "offload_disk")
    packing = doc.flag("sample_packing")
    doc.get("pad_to_sequence_len")
    fields: dict[str, Any] = {
        "seq_len": doc.integer("sequence_len", 512),
        "packing": packing,
        "gradient_checkpointing": "unsloth" if offloads else "full" if checkpointing in (True, "true") else "none",
        "attention": _attention(doc, packing),
        "loss_kernel": "full",
    }
    chunked = ("liger_fused_linear_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy")
    on = [doc.flag(key) for key in chunked]
    if any(on):
        fields["loss_kernel"] = "chunked"
    fields["fused_ops"] = tuple(op for key, op in LIGER_KERNELS.items() if doc.flag(key))
    options = doc.get("gradient_checkpointing_kwargs")
    if isinstance(options, dict) and isinstance(options.get("use_reentrant"), bool):
        fields["reentrant"] = options["use_reentrant"]
    return fields


def _attention(doc: Document, packing: bool) -> str:
    legacy = [name for key, name in LEGACY_ATTENTION.items() if doc.flag(key)]
    kernel = doc.text("attn_implementation") or (legacy[0] if legacy else "auto")
    if kernel in ("auto", "sdpa", "eager") and packing:
        doc.warn(
            "sample_packing",
            "without flash attention packed documents see each other",
            "attn_implementation: flash_attention_2",
        )
    if kernel in ("auto", "sdpa", "eager", "flash_attention_2"):
        return kernel
    doc.leave("attn_implementation", f"{kernel} is counted as flash_attention_2")
    return "flash_attention_2"


def _placement(doc: Document, open_file: OpenFile) -> Placement:
    found = read_placement(doc, open_file)
    doc.get("fsdp_version")
    workers = doc.integer("ray_num_workers", 0)
    return found._replace(n_gpus=workers) if workers > 0 else found


def _check(doc: Document, plan: Plan) -> None:
    """What utils/schemas/validation.py and peft.py refuse."""
    adapter, four = doc.text("adapter"), doc.flag("load_in_4bit")
    if plan.quantization in QUANTIZED and plan.method == "full":
        doc.error("load_in_4bit" if four else "load_in_8bit", "a quantised base needs an adapter", "adapter: qlora")
    if adapter == "qlora" and not four:
        doc.error("load_in_4bit", "qlora requires it", "load_in_4bit: true")
    for key, usual in (("lora_r", 16), ("lora_alpha", 32)):
        if adapter and key not in doc:
            doc.error(key, "is missing, and axolotl has no default (8 is assumed here)", f"{key}: {usual}")
    if "warmup_steps" in doc and "warmup_ratio" in doc:
        doc.error("warmup_ratio", "warmup_steps and warmup_ratio exclude each other", "one of the two")
    if all(key in doc for key in ("batch_size", "gradient_accumulation_steps")):
        doc.error("batch_size", "excludes gradient_accumulation_steps", "one of the two")
    elif "batch_size" in doc and "micro_batch_size" not in doc:
        doc.error("batch_size", "alone does not say how it is divided", "micro_batch_size")
    if doc.get("datasets") is None and doc.get("pretraining_dataset") is None:
        doc.error("datasets", "there is nothing to train on", "datasets, or pretraining_dataset")


READER = Axolotl()
