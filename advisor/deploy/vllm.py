"""Hand over to vLLM: settings for `vllm serve --config`, with the adapter over its base where vLLM can, else merged.

Its loader was read (vllm/lora/peft_helper.py, vllm/config/lora.py), not run: it needs a GPU.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FILE = "vllm.yaml"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # MaxLoRARanks
PLAIN_STARTS = (True, False, "gaussian")  # of LoRA's matrices; others change the base, or were not checked


def adapter_refusal(adapter: Mapping[str, Any]) -> str | None:
    """Say why vLLM does not load an adapter of this adapter_config.json, or None."""
    if adapter.get("peft_type") != "LORA":
        return f"vLLM loads LoRA adapters only, not {adapter.get('peft_type')}"
    if adapter.get("use_dora"):
        return "vLLM does not load DoRA adapters"
    if adapter.get("modules_to_save"):
        return "vLLM does not load adapters that hold whole modules (modules_to_save)"
    if adapter.get("bias", "none") != "none":
        return "vLLM does not load adapters with biases"
    if adapter.get("init_lora_weights", True) not in PLAIN_STARTS:
        return f"an adapter that started from {adapter['init_lora_weights']} fits a changed base only"
    patterns = ("rank_pattern", "alpha_pattern", "target_parameters")
    odd = [name for name in patterns if adapter.get(name)]
    if odd:
        return f"that vLLM reads {odd[0]} was not checked"
    if adapter["r"] > RANKS[-1]:
        return f"vLLM's LoRA rank ends at {RANKS[-1]}, this one is {adapter['r']}"
    return None


def serve_settings(name: str, folder: Path, *, base: str | None = None, rank: int = 1) -> str:
    """YAML for `vllm serve --config`: the model in `folder`, or the adapter in it of that `rank` over `base`."""
    if base is None:
        return yaml.safe_dump({"model": str(folder), "served-model-name": name}, sort_keys=False)
    settings = {
        "model": base,
        "enable-lora": True,
        "max-lora-rank": next(limit for limit in RANKS if limit >= rank),
        "lora-modules": [json.dumps({"name": name, "path": str(folder)})],
    }
    return yaml.safe_dump(settings, sort_keys=False)
