"""Read cases (a JSON list on stdin) and put Unsloth's real adapters on tiny models; print their trainable parameters.

A case: {"config": of transformers, "adapter": of config.yaml, "fused": whether Unsloth has layers of its own for it}.
No forward pass: the fused layers are Triton's.
"""

import contextlib
import gc
import json
import os
import sys

with contextlib.redirect_stdout(sys.stderr):
    import torch
    import without_gpu  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer
    from unsloth import FastLanguageModel

gc.collect = lambda *args: 0  # Unsloth collects many times a call, a second each in a process of this size
Trainer._inner_training_loop.__name__ = "_fast_inner_training_loop"  # loading a model replaces it and leaves this name


class Tokenizer:
    """What loading leaves on a model, as far as it is looked at."""

    padding_side = "right"


def trainable(case):
    """Parameters that get gradients, as loading and get_peft_model would leave the model."""
    config = dict(case["config"])
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made).to(torch.bfloat16)
    for module in model.modules():
        module.max_seq_length, module._saved_temp_tokenizer = 512, Tokenizer
    os.environ["UNSLOTH_USE_NEW_MODEL"] = "0" if case["fused"] else "1"
    # Offloaded checkpoints want pinned memory, which only a GPU's driver gives.
    adapter = {**case["adapter"], "use_gradient_checkpointing": False}
    model = FastLanguageModel.get_peft_model(model, **adapter)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


answers = []
with contextlib.redirect_stdout(sys.stderr):
    for case in json.load(sys.stdin):
        try:
            answers.append(trainable(case))
        except Exception as error:  # whatever it refuses
            answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
