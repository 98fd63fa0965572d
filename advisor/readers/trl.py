"""TRL's YAML (`trl sft --config FILE`), as release 1.16.0 reads it: trl/scripts/sft.py, SFTConfig, ModelConfig."""

from collections.abc import Mapping
from typing import Any, ClassVar

from advisor.readers.base import OpenFile, Reader, Reading, Words, make_plan
from advisor.readers.document import Document
from advisor.readers.placement import ZERO, Placement, parse_accelerate, read_placement, trl_placement
from advisor.readers.training_arguments import (
    KEYS,
    Defaults,
    read_eval_batch,
    read_training_arguments,
    words_of_training_arguments,
)
from advisor.readers.yaml_file import parse_yaml
from profiles.config_keys import load_key_tables
from profiles.plan import QUANTIZED

SIGNATURE = frozenset(
    {"use_peft", "lora_r", "dataset_name", "datasets", "max_length", "dtype", "load_in_4bit", "output_dir", "packing"}
    | {"per_device_train_batch_size", "learning_rate", "attn_implementation"}
)
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
PLAN_KEYS = {
    **KEYS,
    "lora_rank": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "seq_len": "max_length",
    "target_modules": "lora_target_modules",
    "eval_fraction": "test_split_size",
    "model": "model_name_or_path",
    "attention": "attn_implementation",
    "eval_batch_size": "per_device_eval_batch_size",
}
DEFAULTS = Defaults(learning_rate=2e-5)  # trl/trainer/sft_config.py
DEFAULT_LENGTH = 1024


class Trl(Reader):
    """Files for `trl sft`."""

    id = "trl"
    title = "TRL"
    keys: ClassVar = PLAN_KEYS
    words: ClassVar[Words] = {
        "micro_batch_size": words_of_training_arguments,
        "gradient_accumulation_steps": words_of_training_arguments,
        "seq_len": lambda plan: {"max_length": str(plan.seq_len)},
        "gradient_checkpointing": lambda plan: {"gradient_checkpointing": "true"},
        "loss_kernel": lambda plan: {"loss_type": "nll"},
        "optimizer": lambda plan: {"optim": plan.optimizer},
        "method": lambda plan: {"use_peft": "true"},
        "quantization": lambda plan: (
            {"load_in_4bit": "true", "use_bnb_nested_quant": "true", "dtype": "bfloat16"}
            if plan.quantization in QUANTIZED
            else {"dtype": "bfloat16"}
        ),
        "compute_dtype": lambda plan: {"dtype": "bfloat16"},
        "sharding": lambda plan: {"accelerate_config": "fsdp2"},
    }

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """The model's key with any of SFTConfig's or ModelConfig's."""
        return "model_name_or_path" in content and bool(SIGNATURE & content.keys())

    def read(self, content: Mapping[str, Any], open_file: OpenFile) -> Reading:
        """Translate a file's keys."""
        doc = Document(content, load_key_tables()["trl"])
        model = doc.text("model_name_or_path")
        if not model:
            raise doc.refusal("model_name_or_path", "is no model")
        fields = {"model": model, "platform": "hf", **read_training_arguments(doc, DEFAULTS)}
        fields |= _method(doc) | _base(doc) | _step(doc)
        task = doc.text("lora_task_type", "CAUSAL_LM")
        unjudged = doc.void() or ("" if task == "CAUSAL_LM" else f"lora_task_type {task}: trl sft trains CAUSAL_LM")
        placement = _placement(doc, open_file)
        plan = make_plan(fields, PLAN_KEYS)
        if plan.quantization in QUANTIZED and plan.method == "full":
            doc.error("use_peft", "a quantised base is trained through adapters only", "use_peft: true")
        if doc.get("datasets") is None and doc.get("dataset_name") is None:
            doc.error("dataset_name", "there is nothing to train on", "dataset_name, or datasets")
        evaluation = read_eval_batch(doc, DEFAULTS.eval_batch_size)
        return Reading(
            format=self.id,
            release=doc.table.release,
            plan=plan,
            unjudged=unjudged,
            n_gpus=placement.n_gpus,
            sharding=placement.sharding,
            offload_optimizer=placement.offload_optimizer,
            offload_parameters=placement.offload_parameters,
            targets_by_model=plan.method != "full" and "lora_target_modules" not in doc,
            eval_batch_size=evaluation,
            findings=doc.close(),
            keys=doc.notes(),
        )


def _method(doc: Document) -> dict[str, Any]:
    targets, saved = doc.names("lora_target_modules"), doc.names("lora_modules_to_save")
    rank, alpha, dropout = doc.integer("lora_r", 16), doc.number("lora_alpha", 32), doc.number("lora_dropout", 0.05)
    variant = "dora" if doc.flag("use_dora") else "rslora" if doc.flag("use_rslora") else "lora"
    if not doc.flag("use_peft"):
        if {"lora_r", "lora_alpha", "lora_target_modules"} & doc.content.keys():
            doc.warn("use_peft", "is off: LoRA's keys have no effect, all weights are trained", "use_peft: true")
        return {"method": "full"}
    if "lm_head" in targets:
        doc.error("lora_target_modules", "lm_head takes no adapter under TRL", "lora_modules_to_save: [lm_head]")
    return {
        "method": variant,
        "lora_rank": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": targets or ("all-linear",),
        "method_options": {"modules_to_save": list(saved)} if saved else {},
    }


def _base(doc: Document) -> dict[str, Any]:
    """`dtype` says how the base is stored (float32 by default) and in what 4-bit products run; bf16 is autocast."""
    name = doc.text("dtype", "float32")
    if name not in (*DTYPES, "auto"):
        doc.error("dtype", f"{name} is none of auto, {', '.join(DTYPES)}", "dtype: bfloat16")
    dtype = DTYPES.get(name, "bf16")
    fp16 = doc.flag("fp16")
    bf16 = doc.flag("bf16", not fp16)
    if bf16 and fp16:
        doc.error("fp16", "bf16 and fp16 exclude each other", "bf16: false")
    if "dtype" not in doc:
        doc.warn("dtype", "TRL loads the base in float32 where dtype is not given", "dtype: bfloat16")
    compute = "bf16" if bf16 else "fp16" if fp16 else dtype
    fields: dict[str, Any] = {"quantization": dtype, "compute_dtype": compute, "mixed_precision": bf16 or fp16}
    four, eight = doc.flag("load_in_4bit"), doc.flag("load_in_8bit")
    kind, nested = doc.text("bnb_4bit_quant_type", "nf4"), doc.flag("use_bnb_nested_quant")
    if four:
        fields |= {"quantization": "fp4" if kind == "fp4" else "nf4-dq" if nested else "nf4", "compute_dtype": dtype}
    elif eight:
        fields["quantization"] = "int8"
    return fields


def _step(doc: Document) -> dict[str, Any]:
    """Length, packing, checkpointing, attention, loss."""
    if "max_length" in doc.content and doc.get("max_length") is None:
        doc.leave("max_length", f"without a limit the longest example decides: {DEFAULT_LENGTH} tokens are assumed")
    kernel = doc.text("attn_implementation", "auto")
    known = kernel in ("auto", "sdpa", "eager", "flash_attention_2")
    if not known:
        doc.leave("attn_implementation", f"{kernel} is counted as flash_attention_2")
    packing = doc.flag("packing")
    flash = "flash" in kernel or not known
    if packing and doc.text("packing_strategy", "bfd") != "wrapped" and not flash:
        doc.warn(
            "packing",
            "without flash attention a mask keeps packed documents apart, which is slow",
            "attn_implementation: flash_attention_2",
        )
    test = doc.number("test_split_size", 0.0)
    checkpointing = doc.flag("activation_checkpointing", doc.flag("gradient_checkpointing", True))
    if doc.flag("use_liger_kernel"):
        doc.leave("use_liger_kernel", "Liger's kernels need less than is counted")
    if doc.flag("use_cpu"):
        doc.warn("use_cpu", "the run stays on the CPU whatever card there is: name it with --gpu cpu")
    fields: dict[str, Any] = {
        "seq_len": doc.integer("max_length", DEFAULT_LENGTH),
        "packing": packing,
        "gradient_checkpointing": "full" if checkpointing else "none",
        "attention": kernel if known else "flash_attention_2",
        "eval_fraction": test if 0 < test < 1 else 0.0,
    }
    if doc.flag("padding_free"):
        fields["padding_mask"] = False
    if doc.text("loss_type", "nll") == "dft":
        doc.leave("loss_type", "the loss's own copies of the logits are not counted")
    return fields


def _placement(doc: Document, open_file: OpenFile) -> Placement:
    """Of accelerate's options in the file, else of the trainer's own keys."""
    found = read_placement(doc, open_file)
    name = doc.text("accelerate_config")
    if name:
        text = open_file(name)
        known = trl_placement(name)
        if text is not None:
            found = parse_accelerate(parse_yaml(text, name))
        elif known is not None:
            found = known
        else:
            doc.leave("accelerate_config", "the file is not here: one card, or copies of the model on several")
    stage = doc.integer("zero_stage", -1)
    if stage in (0, 1, 2, 3):
        devices = (doc.text(f"offload_{part}_device", "none") for part in ("optimizer", "param"))
        optimizer, parameters = (device in ("cpu", "nvme") for device in devices)
        found = Placement(found.n_gpus, ZERO[stage], optimizer, parameters)
    count = doc.integer("num_processes", 0)
    return found._replace(n_gpus=count) if count > 0 else found


READER = Trl()
