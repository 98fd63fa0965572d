"""Count what LoRA trains of models without weights, at the modules that LLaMA-Factory would find for `lora_target`.

Run by its own interpreter: JSON lines of {config, lora_target} on standard input, one number a line back.
"""

import json
import sys
from contextlib import redirect_stdout

import torch
from llamafactory.model.model_utils.misc import find_all_linear_modules
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

for line in sys.stdin:
    row = json.loads(line)
    with torch.device("meta"), redirect_stdout(sys.stderr):
        config = CONFIG_MAPPING[row["config"]["model_type"]].from_dict(row["config"])
        model = AutoModelForCausalLM.from_config(config)
        wanted = row["lora_target"]
        modules = find_all_linear_modules(model, freeze_vision_tower=True) if wanted == "all" else wanted.split(",")
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules=modules, task_type="CAUSAL_LM"))
    print(sum(p.numel() for p in adapted.parameters() if p.requires_grad), flush=True)
