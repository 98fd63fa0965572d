"""Published runs (tests/measured/runs.jsonl) as plans: what each source's words mean in ours.

A row keeps its source's own fields; here they become a `Plan`, a model, a card, and the measured quantities in bytes
and seconds. What cannot be expressed (tensor parallelism, FP8, GPTQ, methods that are not modelled) is kept with the
reason in `skipped`. Memory and speed benchmarks share this file: `plan` is the batch that sets the memory peak,
`speed_plan` the average batch where the two differ.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.model_configs import model_ref
from estimators.methods import methods
from profiles.errors import AdviseError
from profiles.plan import Plan
from profiles.units import GB, GIB, MIB

RUNS = Path(__file__).parent.parent / "tests" / "measured" / "runs.jsonl"

Json = dict[str, Any]

GPU_IDS = {
    "NVIDIA A100-80GB-PCIe": "a100-80-pcie",
    "NVIDIA A100-80GB": "a100-80-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-80-sxm",
    "NVIDIA A100-SXM4-40GB": "a100-40-sxm",
    "NVIDIA A100-40GB": "a100-40-sxm",
    "NVIDIA A100 (size not printed)": "a100-80-sxm",
    "NVIDIA A100": "a100-80-sxm",
}
GPU_KEYS = {
    "L40S": "l40s",
    "T4": "t4",
    "H100-80GB": "h100-sxm",
    "RTX4080": "rtx4080",
    "RTX4090": "rtx4090",
    "RTX3090": "rtx3090",
    "H200": "h200",
    "B200": "b200",
    "GB200": "gb200",
    "GB300": "gb300",
    "MI300X": "mi300x",
    "MI325X": "mi325x",
    "A10G": "a10g",
    "L4": "l4",
}

METHODS = {
    "full (pretraining step)": "full",
    "prefix_tuning": "prefix",
    "prompt_tuning": "prompt",
    "p_tuning": "ptuning",
    "bone": "miss",
}

# Options of a published peft_config that change what is trained or kept
PEFT_OPTIONS = ("use_dora", "use_rslora", "modules_to_save", "feedforward_modules", "block_share", "decompose_factor")

# Real token lengths of PEFT's MetaMathQA batches: 209.9 non-pad tokens a sample, padded 1.03 times. The longest batch
# is not published: one length, fitted to a LoRA row, serves all rows.
PEFT_MEAN_LEN = 209.9
PEFT_PADDED_LEN = 216
PEFT_LONGEST_LEN = 676
PEFT_BATCHES = ((4, PEFT_PADDED_LEN), (4, PEFT_LONGEST_LEN))  # an average one, then the longest: (rows, padded length)
FMS_DROPOUT = 0.05  # fms-hf-tuning tuning/config/peft_config.py LoraConfig


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One published run. `measured`: bytes, seconds, tokens/s (real tokens, all cards), `oom` (bool).

    Keys of `measured`: allocated_bytes, reserved_bytes, device_bytes, reserved_avg_bytes, after_load_bytes,
    forward_peak_bytes, backward_peak_bytes, optimizer_peak_bytes, step_seconds, tokens_per_second, oom.
    `stack` names the training code where it is none of the three platforms: its speed is scored apart.
    `speed_note` says why the row's speed cannot be used, `memory_note` why its memory cannot.
    """

    id: str
    source: str
    quality: str
    plan: Plan | None
    model_ref: str | None
    gpu_id: str | None
    n_gpus: int
    measured: dict[str, float]
    speed_plan: Plan | None = None
    stack: str = "hf"
    skipped: str = ""
    speed_note: str = ""
    memory_note: str = ""
    raw: Json = field(default_factory=dict, repr=False)


class _SkippedError(Exception):
    """The row cannot be expressed; the message is the reason."""


@dataclass(slots=True)
class _Draft:
    """What a source's reader adds to the fields that all sources share."""

    plan: Json
    speed: Json = field(default_factory=dict)
    stack: str = "hf"
    speed_note: str = ""
    memory_note: str = ""


def load_rows(path: Path = RUNS) -> list[MeasuredRow]:
    """Read every row of a runs file, in its order."""
    with path.open(encoding="utf-8") as lines:
        return [_row(json.loads(line)) for line in lines if line.strip()]


def _row(raw: Json) -> MeasuredRow:
    common = {
        "id": raw["id"],
        "source": source_name(raw["source"]),
        "quality": raw["quality"],
        "model_ref": model_ref(raw["model"]),
        "gpu_id": GPU_IDS.get(raw.get("gpu") or "") or GPU_KEYS.get(raw.get("gpu_key") or ""),
        "n_gpus": raw.get("n_gpus") or 1,
        "measured": _measured(raw),
        "raw": raw,
    }
    try:
        draft = _draft(raw, common)
        plan = Plan.model_validate(draft.plan)
        speed = Plan.model_validate({**draft.plan, **draft.speed}) if draft.speed else plan
    except (_SkippedError, AdviseError, ValueError) as error:
        return MeasuredRow(**common, plan=None, skipped=str(error).split("\n")[0])
    notes = {"speed_note": draft.speed_note, "memory_note": draft.memory_note}
    return MeasuredRow(**common, plan=plan, speed_plan=speed, stack=draft.stack, **notes)


def source_name(source: str) -> str:
    """A short name for tables."""
    return next((short for long, short in SOURCES.items() if source.startswith(long)), source)


def _draft(raw: Json, common: Json) -> _Draft:
    if common["model_ref"] is None:
        raise _SkippedError(f"shapes of {raw['model']} are not described here")
    if common["gpu_id"] is None:
        raise _SkippedError(f"card {raw.get('gpu')!r} is not in the catalogue")
    if (raw.get("nodes") or 1) > 1 or common["n_gpus"] > 8:
        raise _SkippedError("more than one node")
    method = METHODS.get(raw["method"], raw["method"])
    if method not in methods():
        raise _SkippedError(f"method {raw['method']} is not modelled")
    missing = [key for key in ("batch_size", "seq_len") if raw.get(key) is None]
    if missing:
        raise _SkippedError(f"{' and '.join(missing)} not published")
    plan: Json = {
        "model": common["model_ref"],
        "gpu": common["gpu_id"],
        "n_gpus": common["n_gpus"],
        "method": method,
        "quantization": _quantization(raw),
        "micro_batch_size": raw["batch_size"],
        "gradient_accumulation_steps": raw.get("grad_accum") or 1,
        "seq_len": raw["seq_len"],
        "packing": False,  # sources pack without a block mask: attention runs over the whole length
        "padding_mask": False,
        "gradient_checkpointing": "full" if raw.get("grad_ckpt") else "none",
        "attention": "flash_attention_2" if "flash" in str(raw.get("attention")) else "sdpa",
        "loss_kernel": _loss_kernel(str(raw.get("loss_kernel"))),
        "optimizer": "adamw_torch",
        "sharding": _sharding(str(raw.get("parallelism")), common["n_gpus"]),
        "fsdp_version": 1,
    }
    if raw.get("lora_r"):
        plan["lora_rank"] = raw["lora_r"]
    if isinstance(raw.get("target_modules"), list):
        plan["target_modules"] = tuple(raw["target_modules"])
    if raw.get("avg_len") and raw["avg_len"] != raw["seq_len"]:
        plan["mean_len"] = raw["avg_len"]
    return READERS[common["source"]](raw, plan)


def _quantization(raw: Json) -> str:
    quant = str(raw.get("quant") or "")
    if "gptq" in quant:
        raise _SkippedError("GPTQ weights are not modelled")
    dtype = str(raw.get("dtype")).lower()
    if "fp8" in dtype or "float8" in dtype:
        raise _SkippedError("FP8 training is not modelled")
    if quant:
        details = str(raw.get("quant_details")).replace("_", " ")
        return "nf4-dq" if "double quant" in details and "no double" not in details else "nf4"
    return "fp16" if dtype.startswith(("fp16", "float16")) else "bf16"


def _loss_kernel(text: str) -> str:
    if "Liger" in text:
        return "fused"
    return "chunked" if "hunked" in text and "full" not in text else "full"


def _sharding(text: str, n_gpus: int) -> str:
    if re.search(r"\b[TPC]P\d|naive", text):
        raise _SkippedError(f"parallelism {text!r} cannot be expressed")
    if n_gpus == 1:
        return "none"
    if "HYBRID" in text or "None" in text:
        raise _SkippedError(f"parallelism {text!r} is not clear enough")
    return "ddp" if "ddp" in text else "fsdp2"


def _measured(raw: Json) -> dict[str, float]:
    """Every memory and speed figure of a row, in bytes, seconds and tokens/s over all cards."""
    out: dict[str, float] = {"oom": float(bool(raw.get("oom")))}

    def put(key: str, value: Any, unit: float) -> None:
        if value is not None:
            out[key] = value * unit

    peak, kind = raw.get("peak_mem_value"), str(raw.get("mem_kind"))
    unit = GIB if raw.get("peak_mem_unit") == "GiB" else GB
    for word, key in (("allocated", "allocated_bytes"), ("active", "allocated_bytes"), ("reserved", "reserved_bytes")):
        if kind.startswith(word):
            put(key, peak, unit)
    if kind.startswith(("device", "unknown")):  # not stated: what nvidia-smi shows is the usual thing to write down
        put("device_bytes", peak, unit)
    put("reserved_bytes", raw.get("peak_reserved_gib"), GIB)
    put("reserved_avg_bytes", raw.get("mem_reserved_avg_gib"), GIB)
    put("device_bytes", raw.get("process_mib") or raw.get("mem_nvidia_smi_mib"), MIB)
    put("after_load_bytes", raw.get("after_load_alloc_mib"), MIB)
    put("forward_peak_bytes", raw.get("peak_forward_mib"), MIB)
    put("backward_peak_bytes", raw.get("peak_backward_mib"), MIB)
    put("optimizer_peak_bytes", raw.get("peak_optimizer_mib"), MIB)
    put("tokens_per_second", raw.get("tokens_per_s"), 1)
    return out


def _peft(raw: Json, plan: Json) -> _Draft:
    """A custom loop: pure bf16 (no autocast), HF's loss, outputs and KV cache kept, sdpa with a padding mask."""
    config = raw.get("peft_config") or {}
    plan |= {
        "seq_len": PEFT_LONGEST_LEN,
        "mean_len": None,
        "mixed_precision": False,
        "keep_outputs": True,
        "use_cache": True,
        "padding_mask": True,
        "max_grad_norm": 0.0,
        "zero_grad_set_to_none": True,
    }
    if plan["method"] == "oft" and "use_cayley_neumann" not in config:
        raise _SkippedError("OFT of before the Cayley-Neumann series is not modelled")
    if plan["method"] == "miss" and isinstance(config.get("init_weights"), str):
        raise _SkippedError(f"MiSS's variant {config['init_weights']} is not modelled")
    if "num_virtual_tokens" in config:
        plan["num_virtual_tokens"] = config["num_virtual_tokens"]
    options = {key: config[key] for key in PEFT_OPTIONS if config.get(key)}
    if plan["method"] == "oft":
        options["r"] = config["r"]  # blocks, not a rank
    elif isinstance(config.get("r"), int):
        plan["lora_rank"] = config["r"]
    plan["method_options"] = options
    if "adapters not upcast" in raw["dtype"]:
        plan["adapter_dtype"] = "bf16"
    if raw["method"] == "prefix_tuning" and raw.get("grad_ckpt"):
        plan["gradient_checkpointing"] = "none"
    speed = {"seq_len": PEFT_PADDED_LEN, "mean_len": PEFT_MEAN_LEN}
    old = raw["version"].startswith("torch 2.7")
    note = "same experiment ran 1.4 to 2.3 times faster on later library versions" if old else ""
    return _Draft(plan, speed, stack="peft loop", speed_note=note)


def _fms(raw: Json, plan: Json) -> _Draft:
    """HF SFTTrainer of 2024, FA2. FOAK kernels are Unsloth's: for speed such a row counts as that platform."""
    config, version = raw["framework_config"], str(raw.get("version"))
    loss = "fused" if "liger" in config else "full"
    if raw["method"] != "full":
        plan["lora_dropout"] = FMS_DROPOUT
    if "peft-bnb" in config:  # the framework's own adapters, and TRL 0.13, which casts embeddings and norms alone
        plan["adapter_dtype"] = "fp32"
    plan |= {
        "mixed_precision": "no AMP" not in raw["dtype"],
        "reentrant": True,  # transformers before 5, where gradient_checkpointing_kwargs is not given
        "fused_ops": ("norm", "rotary") if "foak" in config else (),
        # TRL 0.11 to 0.13 (SFTTrainer) prepares a quantised base unless it is still to be sharded
        "kbit_prepared": config == "baseline-peft-bnb" and plan["n_gpus"] == 1,
        "loss_kernel": loss,
        # transformers 4.46 to 4.49 (ForCausalLMLoss) copy the shifted fp32 logits: 14 V, as today with kept outputs; on
        # several cards the lowest layer decides
        "keep_outputs": ("transformers 4.48" in version and loss == "full" and plan["n_gpus"] == 1) or None,
    }
    if "c_attn" in plan.get("target_modules", ()):
        plan["target_modules"] = tuple(t for t in plan["target_modules"] if t != "c_attn")
    if plan["quantization"] == "nf4-dq" and raw["dtype"].startswith("float16"):
        plan["compute_dtype"] = "fp16"
    speed: Json = {"platform": "unsloth", "loss_kernel": loss} if "foak" in config else {}
    memory_note = ""
    if not raw["packing"]:
        speed |= {"seq_len": round(raw["avg_len"]), "mean_len": None}
        memory_note = "the longest batch's length is not published"
    elif "foak" in config and "liger" not in config:
        memory_note = "FOAK's cross entropy, which overwrites the logits, is not modelled"
    elif "Mixtral" in raw["model"] and raw.get("quant"):
        memory_note = "Mixtral's experts were linears in 2024, which bitsandbytes quantised"
    # peak counts gathered FSDP units too, but several rows are blank
    stack = "unsloth kernels" if "foak" in config else "hf"
    return _Draft(plan, speed, stack=stack, memory_note=memory_note)


def _ibm(raw: Json, plan: Json) -> _Draft:
    plan |= {"mixed_precision": "+ bf16 AMP" in raw["dtype"]}
    if plan["n_gpus"] == 1:
        plan["sharding"] = "none"
    return _Draft(plan, memory_note="percent of the card's memory, sampled: at best 1 % of the card")


def _qwen(raw: Json, plan: Json) -> _Draft:
    """Qwen's finetune.py: HF Trainer, FA2. LoRA over c_attn, c_proj, w1, w2 is all linears of a layer."""
    plan |= {"mixed_precision": True}
    if raw["method"] != "full":
        plan["target_modules"] = ("all-linear",)
    if "wte" in str(raw.get("target_modules")):
        raise _SkippedError("LoRA that also trains the embeddings and the head in full is not modelled")
    note = "c_attn carries one adapter where three are counted; unit and kind of the memory are not stated"
    return _Draft(plan, memory_note=note)


def _swift(raw: Json, plan: Json) -> _Draft:
    """ms-swift of 2023: default target is the fused q, k, v projection; lengths 3,234 +- 2,547 cut at the cap."""
    plan |= {"mixed_precision": True}
    if plan["method"] != "full":
        target = str(raw.get("target_modules"))
        plan["target_modules"] = ("all-linear",) if target.startswith("ALL") else ("q_proj", "k_proj", "v_proj")
        if raw["model"].startswith(("yi", "openbuddy")):
            plan["target_modules"] = ("q_proj", "k_proj", "v_proj")
    if "naive" in str(raw.get("attention")):
        plan["attention"] = "eager"
    return _Draft(
        plan,
        speed_note="samples/s only, of lengths whose mean after cutting is not published",
        memory_note="the sequence of batches is not published (3,234 +- 2,547 tokens a row, cut at the cap)",
    )


def _fsdp_qlora(raw: Json, plan: Json) -> _Draft:
    """Its train.py of March 2024: all in bf16, non-reentrant checkpoints, dropout, every linear but o_proj."""
    plan |= {
        "target_modules": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
        "lora_dropout": 0.1,
        "adapter_dtype": "bf16",
        "keep_outputs": True,
        # transformers before 4.45 hands out `logits.float()`, as today only LLaMA-Factory's mixed precision does
        "platform": "llamafactory",
        "mixed_precision": True,
        "reentrant": False,
    }
    if "CPU offload" in raw["parallelism"]:
        plan |= {"offload_parameters": True, "offload_optimizer": True}
    return _Draft(plan, {"platform": "hf", "mixed_precision": False}, stack="fsdp_qlora")


def _fitcheck(raw: Json, plan: Json) -> _Draft:
    """One step of a small loop on a T4: fp16, LoRA r 32, checkpointing; kernel as the row says.

    The rows that the source's own manifest calls excluded are measured as well as the others: they lack two figures of
    its formulas (data/measurements/README.md in its sdist).
    """
    eager = raw["attention"].startswith("eager")
    plan |= {
        "attention": "eager" if eager else "sdpa",
        "mixed_precision": False,
        "compute_dtype": "fp16",
        "kbit_prepared": plan["quantization"] == "nf4",
        "adapter_dtype": "fp32",
        "max_grad_norm": 0.0,
        "keep_outputs": True,
    }
    # their shim repeats the key heads, so that the memory-efficient kernel serves GQA too: as a mask would have it
    plan["padding_mask"] = not eager
    return _Draft(plan)


def _canifinetune(raw: Json, plan: Json) -> _Draft:
    note = "2 or 3 steps on a desktop card, the first one perhaps among them"
    if raw.get("target_modules") == "attention":
        plan["target_modules"] = ("q_proj", "k_proj", "v_proj", "o_proj")
    plan |= {
        "optimizer": "paged_adamw_8bit" if "paged" in raw["optimizer"] else "adamw_torch",
        "mixed_precision": "AMP" in raw["dtype"],
        "adapter_dtype": "fp32",
        "keep_outputs": True,
        "kbit_prepared": plan["quantization"].startswith("nf4"),
    }
    return _Draft(plan, speed_note=note)


def _foundry(raw: Json, plan: Json) -> _Draft:
    """llm-foundry: Composer, FSDP mixed precision. amp_*: autocast over fp32 masters; bf16: all in bf16."""
    amp = raw["dtype"].startswith("amp")
    plan |= {"quantization": "fp32" if amp else "bf16", "compute_dtype": "bf16", "mixed_precision": amp}
    plan["loss_kernel"] = "full"
    if "SHARD_GRAD_OP" in raw["parallelism"]:
        plan["sharding"] = "zero2"
    return _Draft(plan, stack="llm-foundry", memory_note="modules and a loop of its own, no memory published")


def _torchtune(raw: Json, plan: Json) -> _Draft:
    optimizer = str(raw["optimizer"])
    if "in backward" in optimizer:
        raise _SkippedError("an optimizer step fused into the backward pass is not modelled")
    if "activation offloading" in raw["notes"]:
        raise _SkippedError("activation offloading is not modelled")
    targets = {"output_proj": ("o_proj",), "mlp": ("gate_proj", "up_proj", "down_proj")}
    if "target_modules" in plan:
        plan["target_modules"] = tuple(m for t in plan["target_modules"] for m in targets.get(t, (t,)))
    plan |= {
        "optimizer": "paged_adamw_8bit" if "8bit" in optimizer else "adamw_torch",
        "mixed_precision": False,
        "adapter_dtype": "bf16",
        "fsdp_version": 2,
    }
    if "tokens/s is the total" in raw["notes"]:
        plan["sharding"] = "fsdp2"
    note = "lengths of the padded batches are unknown" if "(padded)" in raw["notes"] else ""
    # compiled kernels are fused as Unsloth's are: for speed such a row counts as that platform
    compiled = not raw["notes"].endswith(("(padded)", "+ packed dataset"))
    speed: Json = {"platform": "unsloth", "loss_kernel": plan["loss_kernel"]} if compiled else {}
    memory_note = "its own modules, compiled, with chunked outputs of its own"
    if plan["sharding"] == "fsdp2" and plan["quantization"] != "bf16":
        memory_note = "torchtune shards NF4 as it reads it, transformers holds all of it first"
    return _Draft(plan, speed, stack="torchtune", speed_note=note, memory_note=memory_note)


def _unsloth(raw: Json, plan: Json) -> _Draft:
    plan |= {
        "platform": "unsloth",
        "gradient_checkpointing": "unsloth",
        "loss_kernel": None,
        "optimizer": "adamw_8bit" if raw["optimizer"] == "adamw_8bit" else "adamw_torch",
        "padding_mask": None,
    }
    if raw["method"] == "full":
        plan["mixed_precision"] = None
    else:
        plan["target_modules"] = ("all-linear",)
    note = "lengths of the examples are not published (seq_len is the cap)"
    return _Draft(plan, stack="unsloth", speed_note=note, memory_note=note)


def _other_stack(raw: Json, plan: Json) -> _Draft:
    raise _SkippedError(f"{raw['platform']}: model code or parallelism of its own")


SOURCES = {
    "huggingface/peft": "peft",
    "foundation-model-stack": "fms",
    "IBM ado": "ibm",
    "unslothai/notebooks": "unsloth-notebooks",
    "pytorch/torchtune": "torchtune",
    "Lightning-AI/litgpt": "litgpt",
    "modelscope/ms-swift": "ms-swift",
    "QwenLM": "qwen",
    "AnswerDotAI": "fsdp_qlora",
    "NVIDIA": "nvidia",
    "mosaicml": "llm-foundry",
    "DaoyuanLi2816": "canifinetune",
    "fitcheck": "fitcheck",
    "MLPerf": "mlperf",
    "pytorch/torchtitan": "torchtitan",
}

READERS: dict[str, Callable[[Json, Json], _Draft]] = {
    "peft": _peft,
    "fms": _fms,
    "ibm": _ibm,
    "unsloth-notebooks": _unsloth,
    "torchtune": _torchtune,
    "litgpt": _other_stack,
    "ms-swift": _swift,
    "qwen": _qwen,
    "fsdp_qlora": _fsdp_qlora,
    "nvidia": _other_stack,
    "llm-foundry": _foundry,
    "canifinetune": _canifinetune,
    "fitcheck": _fitcheck,
    "mlperf": _other_stack,
    "torchtitan": _other_stack,
}
