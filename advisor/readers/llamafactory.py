"""LLaMA-Factory's YAML (`llamafactory-cli train FILE`), as release 0.9.5 reads it.

Defaults and refusals from hparams/*.py, what it makes of dtypes from hparams/parser.py and model/adapter.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from advisor.readers.base import OpenFile, Reader, Reading, Words, make_plan
from advisor.readers.document import Document
from advisor.readers.placement import Placement, read_placement
from advisor.readers.training_arguments import (
    KEYS,
    Defaults,
    read_eval_batch,
    read_training_arguments,
    words_of_training_arguments,
)
from profiles.config_keys import load_key_tables
from profiles.plan import QUANTIZED, Plan

SIGNATURE = frozenset(
    {"stage", "finetuning_type", "template", "cutoff_len", "lora_target", "export_dir", "infer_backend"}
)
V1 = frozenset({"model_class", "train_dataset", "peft_config", "dist_config", "sample_backend"})
TASKS = {"sft": "sft", "pt": "pretrain", "dpo": "dpo", "kto": "kto", "rm": "reward"}
ATTENTION = {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}
PLAN_KEYS = {
    **KEYS,
    "lora_rank": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "seq_len": "cutoff_len",
    "eval_fraction": "val_size",
    "early_stopping_patience": "early_stopping_steps",
    "target_modules": "lora_target",
    "model": "model_name_or_path",
    "attention": "flash_attn",
    "eval_batch_size": "per_device_eval_batch_size",
}
EPSILON = 1e-6  # a val_size below it is none (hparams/parser.py)
EVALUATED = 0.05  # a share of the rows; only that there are any changes an answer


class LlamaFactory(Reader):
    """Training files of LLaMA-Factory; those that merge, chat or predict are told apart."""

    id = "llamafactory"
    title = "LLaMA-Factory"
    keys: ClassVar = PLAN_KEYS
    words: ClassVar[Words] = {
        "micro_batch_size": words_of_training_arguments,
        "gradient_accumulation_steps": words_of_training_arguments,
        "seq_len": lambda plan: {"cutoff_len": str(plan.seq_len)},
        "gradient_checkpointing": lambda plan: {"disable_gradient_checkpointing": "false"},
        "loss_kernel": lambda plan: {"enable_liger_kernel": "true"},
        "optimizer": lambda plan: {"optim": plan.optimizer},
        "method": lambda plan: {"finetuning_type": "lora"},
        "quantization": lambda plan: {"quantization_bit": "4"} if plan.quantization in QUANTIZED else {"bf16": "true"},
        "sharding": lambda plan: {"deepspeed": "a ZeRO-3 configuration"},
    }

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """Its own keys beside the model's."""
        return bool(SIGNATURE & content.keys() and "model_name_or_path" in content) or len(V1 & content.keys()) > 0

    def read(self, content: Mapping[str, Any], open_file: OpenFile) -> Reading:
        """Translate a file's keys."""
        doc = Document(content, load_key_tables()[self.id], converts_text=False)
        aside = _not_training(doc)
        if aside:
            return Reading(format=self.id, release=doc.table.release, plan=None, unjudged=aside)
        model = doc.text("model_name_or_path")
        if not model:
            raise doc.refusal("model_name_or_path", "is no model")
        unjudged = doc.void()
        fields = {"model": model, "platform": self.id, **read_training_arguments(doc, Defaults())}
        fields |= _method(doc) | _base(doc) | _step(doc)
        stage = doc.text("stage", "sft")
        task = "orpo" if stage == "dpo" and doc.text("pref_loss") == "orpo" else TASKS.get(stage)
        if task is None:
            unjudged = unjudged or f"stage {stage}: its memory and speed are not estimated"
        else:
            fields["task"] = task
        packing = doc.content.get("packing")
        fields["packing"] = doc.flag("packing") if packing is not None else stage == "pt"
        if doc.flag("neat_packing"):
            fields |= {"packing": True, "padding_mask": True}  # a mask of documents, 4-D
        _pure_bf16(doc, fields)
        return _place(doc, make_plan(fields, PLAN_KEYS), unjudged, open_file)


def _not_training(doc: Document) -> str:
    """Why the file trains nothing that is read here."""
    if V1 & doc.content.keys() and "model_name_or_path" not in doc:
        return "LLaMA-Factory's new keys (USE_V1=1) are not read"
    if doc.get("export_dir"):
        return "it trains nothing: export_dir means llamafactory-cli export, which merges"
    predicts, trains = doc.flag("do_predict"), doc.flag("do_train")
    if predicts and not trains:
        return "it trains nothing: do_predict only generates"
    if not trains and not {"stage", "finetuning_type", "dataset"} & doc.content.keys():
        return "it trains nothing: it is for llamafactory-cli chat or api"
    if not trains:
        doc.error("do_train", "is not on: nothing is trained", "do_train: true")
    if doc.get("tokenized_path") and "per_device_train_batch_size" not in doc and "learning_rate" not in doc:
        return "it trains nothing: tokenized_path without a training's keys only prepares the data"
    return ""


def _method(doc: Document) -> dict[str, Any]:
    kind = doc.text("finetuning_type", "lora")
    if kind == "lora":
        rank = doc.integer("lora_rank", 8)
        variants = (
            ("dora", doc.flag("use_dora")),
            ("pissa", doc.flag("pissa_init")),
            ("loraplus", doc.number("loraplus_lr_ratio", 0) > 0),
            ("rslora", doc.flag("use_rslora")),
        )
        if doc.flag("use_llama_pro"):
            doc.leave("use_llama_pro", "adapters in all layers are counted, not in the added ones alone")
        return {
            "method": next((name for name, on in variants if on), "lora"),
            "lora_rank": rank,
            "lora_alpha": doc.number("lora_alpha", 0) or 2 * rank,
            "lora_dropout": doc.number("lora_dropout", 0.0),
            "target_modules": _targets(doc, "lora_target"),
            "method_options": _saved(doc),
        }
    if kind == "oft":
        return _oft(doc)
    if kind == "freeze":
        layers = doc.integer("freeze_trainable_layers", 2)
        if doc.flag("use_llama_pro"):
            return {"method": "llama_pro", "method_options": {"num_expand": layers}}
        return {"method": "freeze", "method_options": {"freeze_trainable_layers": layers}}
    if kind == "full":
        return _full(doc)
    doc.error("finetuning_type", f"{kind} is no method of {doc.table.release}", "lora, oft, freeze or full")
    return {"method": kind}


def _oft(doc: Document) -> dict[str, Any]:
    """By block size, or by number of blocks. model/adapter.py takes the targets from lora_target."""
    blocks, size = doc.integer("oft_rank", 0), doc.integer("oft_block_size", 32)
    if min(blocks, size) < 0 or blocks == size == 0:
        raise doc.refusal("oft_block_size", "is no size")
    if blocks and size:
        doc.error("oft_block_size", "PEFT takes oft_rank or a block size, not both", "oft_block_size: 0")
    if set(doc.names("oft_target")) - {"all"}:
        doc.warn("oft_target", "is read by nothing: lora_target decides, all by default", "lora_target")
    options = {"r": blocks} if blocks else {"oft_block_size": size}
    return {"method": "oft", "target_modules": _targets(doc, "lora_target"), "method_options": options | _saved(doc)}


def _full(doc: Document) -> dict[str, Any]:
    """Full fine-tuning, or one of the optimizers that make a method of it."""
    for name in ("galore", "apollo"):
        if doc.flag(f"use_{name}"):
            rank = doc.integer(f"{name}_rank", 16)
            return {"method": name, "lora_rank": rank, "target_modules": _targets(doc, f"{name}_target")}
    if doc.flag("use_badam"):
        if doc.text("badam_mode", "layer") != "layer":
            doc.leave("badam_mode", "a share of each weight by turns is counted as a layer by turns")
        return {"method": "badam"}
    return {"method": "full", **({"optimizer": "muon"} if doc.flag("use_muon") else {})}


def _targets(doc: Document, key: str) -> tuple[str, ...]:
    names = doc.names(key) or ("all",)
    return ("all-linear",) if "all" in names else names


def _saved(doc: Document) -> dict[str, Any]:
    names = doc.names("additional_target")
    return {"modules_to_save": list(names)} if names else {}


def _base(doc: Document) -> dict[str, Any]:
    """How the base is stored and in what products run: bf16 and fp16 say both, none leaves the checkpoint's dtype."""
    bf16, fp16 = doc.flag("bf16") or doc.flag("pure_bf16"), doc.flag("fp16")
    if doc.flag("bf16") and fp16:
        doc.error("fp16", "bf16 and fp16 exclude each other", "one of the two")
    if not bf16 and not fp16:
        doc.warn("bf16", "neither bf16 nor fp16 is on: no mixed precision, products in the checkpoint's dtype", "true")
    plain = "fp16" if fp16 and not bf16 else "bf16"
    fields: dict[str, Any] = {"quantization": plain, "mixed_precision": None if doc.flag("bf16") or fp16 else False}
    bits, backend = doc.integer("quantization_bit", 16), doc.text("quantization_method", "bnb")
    kind, double = doc.text("quantization_type", "nf4"), doc.flag("double_quantization", True)
    if bits == 16:
        return fields
    if backend.lower() not in ("bnb", "bitsandbytes") or bits not in (4, 8):
        doc.leave("quantization_method", f"{bits} bits by {backend} are counted as bitsandbytes' 4 or 8")
    four_bit = "fp4" if kind == "fp4" else "nf4-dq" if double else "nf4"
    return fields | {"quantization": "int8" if bits > 4 else four_bit, "compute_dtype": plain}


def _step(doc: Document) -> dict[str, Any]:
    """Length, checkpointing, attention, loss."""
    kernel = doc.text("flash_attn", "auto")
    if kernel not in ATTENTION:
        doc.error("flash_attn", f"{kernel} is none of {', '.join(ATTENTION)}", "flash_attn: auto")
    checkpointing = "unsloth" if doc.flag("use_unsloth_gc") else "full"
    fields: dict[str, Any] = {
        "seq_len": doc.integer("cutoff_len", 2048),
        "gradient_checkpointing": "none" if doc.flag("disable_gradient_checkpointing") else checkpointing,
        "attention": ATTENTION.get(kernel, "auto"),
        "eval_fraction": _share(doc.number("val_size", 0.0)),
        "early_stopping_patience": doc.integer("early_stopping_steps", 0),
    }
    if doc.flag("enable_liger_kernel") or doc.flag("use_liger_kernel"):
        fields["loss_kernel"] = "chunked"
    reentrant = doc.flag("use_reentrant_gc", True)
    if doc.flag("use_unsloth"):  # its checkpoints are always reentrant
        fields |= {"platform": "unsloth", "gradient_checkpointing": "unsloth"}
    elif not reentrant:
        fields["reentrant"] = False
    return fields


def _share(val_size: float) -> float:
    """Above 1 it is a number of examples, whose share is not known."""
    return val_size if EPSILON < val_size < 1 else 0.0


def _pure_bf16(doc: Document, fields: dict[str, Any]) -> None:
    """No fp32 copies of what is trained: as in Hugging Face's loop, with the model's own loss."""
    if not doc.flag("pure_bf16"):
        return
    if fields["method"] in ("full", "galore", "apollo", "freeze", "llama_pro"):
        fields |= {"platform": "hf", "loss_kernel": fields.get("loss_kernel", "full")}
    else:
        fields["adapter_dtype"] = "bf16"


def _place(doc: Document, plan: Plan, unjudged: str, open_file: OpenFile) -> Reading:
    placement = read_placement(doc, open_file)
    workers = doc.integer("ray_num_workers", 0)
    evaluation = read_eval_batch(doc, Defaults().eval_batch_size)
    if evaluation is not None and not doc.get("eval_dataset") and doc.number("val_size", 0.0) < EPSILON:
        doc.error("eval_strategy", "there is nothing to evaluate on", "val_size: 0.1, or eval_dataset")
    for wrong, key, text, fix in _conflicts(doc, plan, placement):
        if wrong:
            doc.error(key, text, fix)
    return Reading(
        format=LlamaFactory.id,
        release=doc.table.release,
        plan=plan.replace(eval_fraction=0.0 if evaluation is None else EVALUATED),
        unjudged=unjudged,
        n_gpus=workers or None,
        sharding=placement.sharding,
        offload_optimizer=placement.offload_optimizer,
        offload_parameters=placement.offload_parameters,
        eval_batch_size=evaluation,
        findings=doc.close(),
        keys=doc.notes(),
    )


def _conflicts(doc: Document, plan: Plan, placement: Placement) -> Iterator[tuple[bool, str, str, str]]:
    """(whether, key, what, fix) of what hparams/parser.py, finetuning_args.py and train/trainer_utils.py refuse."""
    kind = doc.text("finetuning_type", "lora")
    quantized, zero3 = plan.quantization in QUANTIZED, placement.sharding == "zero3"
    own_optimizer = doc.flag("use_galore") or doc.flag("use_apollo")
    yield doc.get("dataset") is None, "dataset", "is missing", "dataset: a name of dataset_info.json"
    yield (
        quantized and kind not in ("lora", "oft"),
        "quantization_bit",
        "quantised bases take LoRA or OFT only",
        "finetuning_type: lora",
    )
    yield (
        quantized and doc.flag("pissa_init"),
        "pissa_init",
        "PiSSA starts from weights that are not quantised",
        "pissa_init: false",
    )
    yield (
        kind == "lora" and (own_optimizer or doc.flag("use_badam")),
        "finetuning_type",
        "LoRA excludes GaLore, APOLLO and BAdam",
        "finetuning_type: full",
    )
    yield (
        own_optimizer and plan.optimizer == "adamw_torch_fused",
        "optim",
        "GaLore and APOLLO do not know adamw_torch_fused, the default",
        "optim: adamw_torch",
    )
    layerwise = next((key for key in ("galore_layerwise", "apollo_layerwise") if doc.content.get(key) is True), "")
    yield (
        bool(layerwise) and plan.gradient_accumulation_steps != 1,
        layerwise,
        "an update a layer does not wait for accumulated gradients",
        "gradient_accumulation_steps: 1",
    )
    yield (
        own_optimizer and placement.sharding in ("ddp", "zero1", "zero2", "zero3") and doc.get("deepspeed") is not None,
        "deepspeed",
        "GaLore and APOLLO exclude DeepSpeed",
        "no deepspeed",
    )
    yield zero3 and doc.flag("pure_bf16"), "pure_bf16", "excludes ZeRO-3", "bf16: true"
    yield zero3 and doc.flag("use_unsloth"), "use_unsloth", "excludes ZeRO-3", "use_unsloth: false"
    yield kind == "oft" and doc.flag("use_unsloth"), "use_unsloth", "excludes OFT", "use_unsloth: false"


READER = LlamaFactory()
