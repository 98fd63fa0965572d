"""A training script over Unsloth's FastLanguageModel and TRL, as release 2026.10.7 runs it. Read, never run.

Defaults: models/loader.py from_pretrained, models/llama.py get_peft_model, and the arguments that models/rl.py gives to
TRL's configurations.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from advisor.readers.base import OpenFile, Reader, Reading, Words, make_plan
from advisor.readers.document import Document
from advisor.readers.placement import read_placement
from advisor.readers.script import Call
from advisor.readers.training_arguments import (
    KEYS,
    Defaults,
    read_eval_batch,
    read_training_arguments,
    words_of_training_arguments,
)
from profiles.config_keys import load_key_tables
from profiles.errors import InvalidInputError
from profiles.plan import QUANTIZED

LOADERS = ("FastLanguageModel", "FastModel", "FastVisionModel")
CONFIGS = {
    "SFTConfig": "sft",
    "TrainingArguments": "sft",
    "UnslothTrainingArguments": "sft",
    "DPOConfig": "dpo",
    "ORPOConfig": "orpo",
    "KTOConfig": "kto",
    "RewardConfig": "reward",
    "GRPOConfig": "grpo",
}
TRAINERS = ("SFTTrainer", "UnslothTrainer", "Trainer", "DPOTrainer", "ORPOTrainer", "KTOTrainer", "GRPOTrainer")
DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEFAULT_LENGTH = 2048
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
UNSLOTH_DEFAULTS = Defaults(
    micro_batch_size=4,
    gradient_accumulation_steps=2,
    optimizer="adamw_8bit",
    weight_decay=0.001,
    warmup_steps=0.1,
    eval_batch_size=4,
    seed=3407,
)
PLAN_KEYS = {
    **KEYS,
    "model": "from_pretrained.model_name",
    "seq_len": "from_pretrained.max_seq_length",
    "lora_rank": "get_peft_model.r",
    "lora_alpha": "get_peft_model.lora_alpha",
    "lora_dropout": "get_peft_model.lora_dropout",
    "target_modules": "get_peft_model.target_modules",
    "eval_batch_size": "per_device_eval_batch_size",
}


class UnslothScript(Reader):
    """Scripts of the shape of Unsloth's notebooks."""

    id = "unsloth"
    title = "Unsloth"
    is_script = True
    keys: ClassVar = PLAN_KEYS
    words: ClassVar[Words] = {
        "micro_batch_size": words_of_training_arguments,
        "gradient_accumulation_steps": words_of_training_arguments,
        "seq_len": lambda plan: {"max_seq_length": str(plan.seq_len)},
        "gradient_checkpointing": lambda plan: {"use_gradient_checkpointing": '"unsloth"'},
        "optimizer": lambda plan: {"optim": f'"{plan.optimizer}"'},
        "method": lambda plan: {"full_finetuning": "False, and a call of get_peft_model"},
        "quantization": lambda plan: {"load_in_4bit": str(plan.quantization in QUANTIZED)},
    }

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """A call of one of its loaders."""
        return _find(content["calls"], *(f"{name}.from_pretrained" for name in LOADERS)) is not None

    def read(self, content: Mapping[str, Any], open_file: OpenFile) -> Reading:
        """Translate the calls that load, adapt, configure and train."""
        calls: tuple[Call, ...] = content["calls"]
        load = _find(calls, *(f"{name}.from_pretrained" for name in LOADERS))
        if load is None:
            raise InvalidInputError("script", "loads no model through FastLanguageModel.from_pretrained")
        adapt = _find(calls, *(f"{name}.get_peft_model" for name in LOADERS))
        config, trainer = _find(calls, *CONFIGS), _find(calls, *TRAINERS)
        base = _document(load, "from_pretrained", ("model_name", "max_seq_length", "dtype", "load_in_4bit"))
        peft = _document(adapt, "get_peft_model", ("model", "r", "target_modules", "lora_alpha"))
        args = _document(config, "config", ("output_dir",), name="")
        train = _document(trainer, "config", ("model",), name="")
        task = CONFIGS.get(config.name, "sft") if config is not None else "sft"
        documents = (base, peft, args, train) if task == "sft" else (base, peft)  # others' own keys are not known here
        model = base.text("model_name")
        defaults = Defaults() if config is not None and config.name == "TrainingArguments" else UNSLOTH_DEFAULTS
        fields = {"model": model, "platform": self.id, **read_training_arguments(args, defaults)}
        fields |= _base(base) | _method(base, peft, adapted=adapt is not None) | _step(base, peft, args, train)
        fields["task"] = task
        vision = "images beside text are not modelled" if load.name.startswith("FastVisionModel") else ""
        unjudged = vision or next((reason for doc in documents if (reason := doc.void())), "")
        if trainer is None:
            args.warn("SFTTrainer", "no trainer is built: what is not found is taken at its default")
        if sum(call.name.endswith(".from_pretrained") for call in calls if call.name.split(".")[0] in LOADERS) > 1:
            base.warn("model_name", "several models are loaded: the first is judged")
        _precision(args, fields)
        if args.flag("use_liger_kernel"):
            args.leave("use_liger_kernel", "Unsloth's own kernels are assumed")
        placement = read_placement(args, open_file)
        plan = make_plan(fields, PLAN_KEYS)
        evaluation = read_eval_batch(args, defaults.eval_batch_size)
        return Reading(
            format=self.id,
            release=base.table.release,
            plan=plan,
            unjudged=unjudged,
            sharding=placement.sharding,
            offload_optimizer=placement.offload_optimizer,
            offload_parameters=placement.offload_parameters,
            float_by_card="dtype" not in base,
            eval_batch_size=evaluation,
            findings=tuple(finding for doc in documents for finding in doc.close()),
            keys=tuple(note for doc in documents for note in doc.notes()),
        )


def _find(calls: tuple[Call, ...], *names: str) -> Call | None:
    """The first call of any of these names; whatever module it is reached through."""
    return next((call for call in calls if call.name in names or call.name.rsplit(".", 1)[-1] in names), None)


def _document(call: Call | None, table: str, order: tuple[str, ...], *, name: str | None = None) -> Document:
    """A call's arguments by name. `order`: the names of those that come without one."""
    values: dict[str, Any] = {}
    computed: dict[str, str] = {}
    if call is not None:
        values = {key: value for key, value in zip(order, call.positional, strict=False) if value is not None}
        values |= call.values
        harmless = load_key_tables()["unsloth.config"].harmless  # data sets and models are always computed
        computed = {key: code for key, code in call.computed.items() if key not in harmless}
    return Document(
        values,
        load_key_tables()[f"unsloth.{table}"],
        name=f"{table}." if name is None else name,
        converts_text=False,
        refuses_unknown=table != "from_pretrained",
        computed=computed,
    )


def _base(base: Document) -> dict[str, Any]:
    """4-bit unless the script says otherwise; plain floats are the card's unless it names them."""
    name = base.text("dtype")
    plain = DTYPES.get(name, "bf16")
    full, eight, sixteen = base.flag("full_finetuning"), base.flag("load_in_8bit"), base.flag("load_in_16bit")
    four = base.flag("load_in_4bit", not (eight or sixteen))
    if sum((four, eight, sixteen)) > 1 and "load_in_4bit" in base:
        base.error("load_in_4bit", "two ways to store the base at once", "one of 4bit, 8bit and 16bit")
    if full and base.content.get("load_in_4bit"):
        base.warn("load_in_4bit", "full fine-tuning turns quantisation off", "load_in_4bit=False")
    quantized = "" if full else "int8" if eight else "nf4-dq" if four else ""
    fields: dict[str, Any] = {"quantization": quantized or plain}
    return fields | ({"compute_dtype": plain} if quantized and name else {})


def _method(base: Document, peft: Document, *, adapted: bool) -> dict[str, Any]:
    full = base.flag("full_finetuning")
    if full or not adapted:
        if full and adapted:
            peft.warn("r", "under full_finetuning get_peft_model has no effect")
        if not full:
            base.error("full_finetuning", "a model without get_peft_model is not trained unless this is True")
        return {"method": "full"}
    start, saved = peft.get("init_lora_weights"), peft.names("modules_to_save")
    variants = (
        ("dora", peft.flag("use_dora")),
        ("pissa", str(start).startswith("pissa")),
        ("loftq", start == "loftq"),
        ("rslora", peft.flag("use_rslora")),
    )
    return {
        "method": next((name for name, on in variants if on), "lora"),
        "lora_rank": peft.integer("r", 16),
        "lora_alpha": peft.number("lora_alpha", 16),
        "lora_dropout": peft.number("lora_dropout", 0.0),
        "target_modules": peft.names("target_modules") or DEFAULT_TARGETS,
        "method_options": {"modules_to_save": list(saved)} if saved else {},
    }


def _step(base: Document, peft: Document, args: Document, train: Document) -> dict[str, Any]:
    """Length, packing and checkpointing, from whichever call says them."""
    length = base.integer("max_seq_length", DEFAULT_LENGTH)
    lengths = [doc.integer(key, length) for doc in (args, train) for key in ("max_length", "max_seq_length")]
    loaded, adapted = base.get("use_gradient_checkpointing"), peft.get("use_gradient_checkpointing")
    asked = adapted if adapted is not None else loaded if loaded is not None else "unsloth"
    kinds = {"unsloth": "unsloth", "true": "full", "false": "none"}
    kind = kinds.get(str(asked).lower())
    if kind is None:
        raise peft.refusal("use_gradient_checkpointing", 'is none of True, False, "unsloth"')
    args.flag("gradient_checkpointing")
    packing = args.flag("packing") or train.flag("packing")
    if args.text("loss_type", "nll") != "nll":
        args.leave("loss_type", "Unsloth's own loss is assumed")
    free = args.get("padding_free") is True
    return {
        "seq_len": min(length, *lengths),
        "packing": packing,
        "padding_mask": False if free else None,
        "gradient_checkpointing": kind,
    }


def _precision(args: Document, fields: dict[str, Any]) -> None:
    """bf16 and fp16 of the trainer must agree with the model's dtype (models/rl.py raises where they do not)."""
    bf16, fp16 = args.flag("bf16"), args.flag("fp16")
    if bf16 and fp16:
        args.error("fp16", "bf16 and fp16 exclude each other", "one of the two")
    wanted = "bf16" if bf16 else "fp16" if fp16 else None
    if wanted is not None and fields["quantization"] in ("bf16", "fp16") and fields["quantization"] != wanted:
        fields["quantization"] = wanted
    if wanted is not None and fields["quantization"] in QUANTIZED:
        fields["compute_dtype"] = wanted


READER = UnslothScript()
