"""Read config.yaml texts (a JSON list on stdin) and build what their sections are the arguments of.

Prints {"count": texts, "faults": [...]}. SFTConfig is the patched one and is really built, on a CPU.
"""

import contextlib
import json
import sys
from tempfile import mkdtemp

with contextlib.redirect_stdout(sys.stderr):
    import without_gpu  # noqa: F401
    import yaml
    from peft import LoraConfig
    from signatures import found as known
    from trl import SFTConfig

texts = json.load(sys.stdin)
faults, folder = [], mkdtemp()
with contextlib.redirect_stdout(sys.stderr):
    for text in texts:
        config = yaml.safe_load(text)
        training, adapter = config["training"], config["adapter"] or {}
        faults += set(config["model"]) - set(known["from_pretrained"])
        lora = {key: value for key, value in adapter.items() if key in known["LoraConfig"]}
        faults += set(adapter) - set(known["get_peft_model"]) - set(lora)
        try:
            if adapter:
                LoraConfig(task_type="CAUSAL_LM", **lora)
            built = SFTConfig(output_dir=folder, use_cpu=True, bf16=False, fp16=False, **training)
        except Exception as error:  # whatever it refuses
            faults.append(f"{type(error).__name__}: {error}")
            continue
        wanted = {"gradient_checkpointing", "max_length", "packing", "padding_free", "seed", "learning_rate"}
        faults += [f"{key} came out as {getattr(built, key)}" for key in wanted if getattr(built, key) != training[key]]
print(json.dumps({"count": len(texts), "faults": sorted(set(faults))}))
