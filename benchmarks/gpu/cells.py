"""The planned grid: what is measured on a GPU, one change from a common plan at a time."""

from dataclasses import dataclass
from typing import Any

from profiles.plan import Plan

BASE: dict[str, Any] = {
    "model": "llama-1b", "gpu": "h200", "seq_len": 1024, "micro_batch_size": 4, "padding_mask": False,
    "gradient_checkpointing": "full",
}  # fmt: skip
NONE = {"gradient_checkpointing": "none"}
FULL = {"method": "full"}
Q4 = {"method": "qlora", "quantization": "nf4-dq"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run. limit_gib: what the allocator may take. events: write every allocation down."""

    id: str
    plan: Plan
    limit_gib: float | None = None
    events: bool = False


HF: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-none": NONE,
    "lora-b1": {"micro_batch_size": 1},
    "lora-b16": {"micro_batch_size": 16},
    "lora-s4096": {"seq_len": 4096, "micro_batch_size": 2},
    "lora-padded": {"padding_mask": True},
    "lora-padded-none": {"padding_mask": True, **NONE},
    "lora-eager": {"attention": "eager"},
    "lora-eager-none": {"attention": "eager", **NONE},
    "lora-a4": {"gradient_accumulation_steps": 4},
    "lora-r64-dropout": {"lora_rank": 64, "lora_dropout": 0.05, **NONE},
    "lora-8bit": {"optimizer": "adamw_8bit"},
    "lora-paged": {"optimizer": "paged_adamw_8bit"},
    "lora-fused-loss": {"loss_kernel": "fused"},
    "lora-expandable": {"expandable_segments": True, **NONE},
    "lora-fp32": {"quantization": "fp32"},
    "lora-fp16": {"quantization": "fp16"},
    "lora-packed": {"packing": True, "micro_batch_size": 2},
    "qlora": Q4,
    "qlora-none": {**Q4, **NONE},
    "qlora-b1": {**Q4, "micro_batch_size": 1},
    "qlora-nf4": {**Q4, "quantization": "nf4"},
    "int8": {"quantization": "int8"},
    "int8-none": {"quantization": "int8", **NONE},
    "full": FULL,
    "full-none": {**FULL, **NONE},
    "full-8bit": {**FULL, "optimizer": "adamw_8bit"},
    "full-adafactor": {**FULL, "optimizer": "adafactor"},
    "full-lion": {**FULL, "optimizer": "lion_32bit"},
    "full-sgd": {**FULL, "optimizer": "sgd"},
    "full-foreach": {**FULL, "optimizer": "adamw_torch"},
    "full-fp32": {**FULL, "quantization": "fp32"},
    "full-a4": {**FULL, "gradient_accumulation_steps": 4},
    "dora": {"method": "dora"},
    "dora-none": {"method": "dora", **NONE},
    "dora-4bit": {"method": "dora", "quantization": "nf4-dq"},
    "adalora": {"method": "adalora"},
    "pissa": {"method": "pissa"},
    "loftq": {"method": "loftq"},
    "oft": {"method": "oft"},
    "ia3": {"method": "ia3", **NONE},
    "vera": {"method": "vera", **NONE},
    "loha": {"method": "loha"},
    "lokr": {"method": "lokr"},
    "miss": {"method": "miss", **NONE},
    "fourierft": {"method": "fourierft"},
    "ln_tuning": {"method": "ln_tuning", **NONE},
    "freeze": {"method": "freeze", "method_options": {"freeze_trainable_layers": 2}},
    "galore": {"method": "galore"},
    "apollo": {"method": "apollo"},
    "prompt": {"method": "prompt", **NONE},
    "ptuning": {"method": "ptuning", **NONE},
    "prefix": {"method": "prefix", **NONE},
    "bitfit": {"method": "bitfit", "model": "qwen2.5-0.5b", **NONE},
    "dpo": {"task": "dpo"},
    "qwen2.5-1.5b": {"model": "qwen2.5-1.5b", **NONE},
    "gemma2-2b": {"model": "gemma2-2b"},
    "gemma2-2b-none": {"model": "gemma2-2b", "micro_batch_size": 2, **NONE},
    "gemma3-1b-none": {"model": "gemma3-1b", **NONE},
    "qwen3-0.6b-full": {"model": "qwen3-0.6b", **FULL, **NONE},
    "phi-3-mini": {"model": "phi-3-mini", "micro_batch_size": 2, **NONE},
    "phi-3-mini-qlora": {"model": "phi-3-mini", **Q4},
    "olmo2-1b-none": {"model": "olmo2-1b", **NONE},
    "gpt2-full": {"model": "gpt2", **FULL, **NONE},
    "pythia-410m-full": {"model": "pythia-410m", **FULL, **NONE},
    "opt-1.3b-none": {"model": "opt-1.3b", **NONE},
    "bloom-560m-full": {"model": "bloom-560m", **FULL},
    "granite-2b": {"model": "granite-2b"},
    "stablelm-2-1.6b-none": {"model": "stablelm-2-1.6b", **NONE},
    "llama-8b": {"model": "llama-8b", "seq_len": 2048, "micro_batch_size": 1},
    "llama-8b-qlora": {"model": "llama-8b", "seq_len": 2048, "micro_batch_size": 2, **Q4},
}
UNSLOTH: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-none": NONE,
    "lora-offloaded": {"gradient_checkpointing": "unsloth"},
    "lora-b1": {"micro_batch_size": 1},
    "lora-b16": {"micro_batch_size": 16, "gradient_checkpointing": "unsloth"},
    "lora-s4096": {"seq_len": 4096, "micro_batch_size": 2, "gradient_checkpointing": "unsloth"},
    "lora-padded": {"padding_mask": True},
    "lora-8bit": {"optimizer": "adamw_8bit", "gradient_checkpointing": "unsloth"},
    "qlora": {**Q4, "gradient_checkpointing": "unsloth"},
    "qlora-none": {**Q4, **NONE},
    "full": FULL,
    "qwen2.5-1.5b": {"model": "qwen2.5-1.5b", "gradient_checkpointing": "unsloth"},
    "gemma2-2b": {"model": "gemma2-2b", "gradient_checkpointing": "unsloth"},
    "llama-8b-qlora": {"model": "llama-8b", "seq_len": 2048, "micro_batch_size": 2, **Q4,
                       "gradient_checkpointing": "unsloth"},
}  # fmt: skip
LLAMAFACTORY: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-none": NONE,
    "lora-padded": {"padding_mask": True},
    "lora-liger": {"loss_kernel": "chunked"},
    "lora-liger-none": {"loss_kernel": "chunked", **NONE},
    "lora-offloaded": {"gradient_checkpointing": "unsloth"},
    "qlora": {**Q4, "optimizer": "adamw_8bit"},
    "int8": {"quantization": "int8"},
    "full": FULL,
    "dora": {"method": "dora"},
    "oft": {"method": "oft"},
    "freeze": {"method": "freeze", "method_options": {"freeze_trainable_layers": 2}},
    "galore": {"method": "galore"},
    "badam": {"method": "badam"},
}
# What the allocator of a smaller card could take. hf-lora-none is expected to allocate 9.97 GiB and to reserve 9.7 to
# 12.9; hf-full-none 15.43, and 14.9 to 18.8. A card of 24 GB leaves 21.2.
LIMITED: dict[str, tuple[str, float]] = {
    "hf-lora-none-9.5": ("hf-lora-none", 9.5),
    "hf-lora-none-10.3": ("hf-lora-none", 10.3),
    "hf-lora-none-12.9": ("hf-lora-none", 12.9),
    "hf-full-none-14.8": ("hf-full-none", 14.8),
    "hf-full-none-16.2": ("hf-full-none", 16.2),
    "hf-llama-8b-21.2": ("hf-llama-8b", 21.2),
}
EVENTS = frozenset(
    {
        *(f"unsloth-{name}" for name in ("lora", "lora-none", "lora-b1", "qlora", "full", "gemma2-2b")),
        *(f"hf-{name}" for name in ("lora-none", "qlora", "int8", "prefix", "dora", "adalora", "lora-padded-none")),
        *(f"llamafactory-{name}" for name in ("qlora", "lora-liger", "full")),
    }
)


def _cells() -> tuple[Cell, ...]:
    found = {}
    for platform, changes in (("llamafactory", LLAMAFACTORY), ("unsloth", UNSLOTH), ("hf", HF)):
        for name, change in changes.items():
            cell_id = f"{platform}-{name}"
            plan = Plan.model_validate({**BASE, "platform": platform, **change})
            found[cell_id] = Cell(cell_id, plan, events=cell_id in EVENTS)
    limited = (Cell(name, found[whole].plan, limit_gib=limit) for name, (whole, limit) in LIMITED.items())
    return (*limited, *found.values())


CELLS = _cells()
