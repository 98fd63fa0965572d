"""Run the train.py of this folder on a CPU: Unsloth's own trainer, config and data path, but transformers' layers.

What is replaced is what needs a GPU: loading, and the adapters' kernels. The learned text of the first rows goes to
runs/learned.json.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import without_gpu  # noqa: F401
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer
from unsloth import FastLanguageModel

Path("runs").mkdir(exist_ok=True)


def load(model_name, max_seq_length, dtype, **options):
    """transformers' model, and what Unsloth's trainer looks for on it."""
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype)
    return mark(model, max_seq_length), AutoTokenizer.from_pretrained(model_name)


def adapt(model, use_gradient_checkpointing, random_state, **options):
    """PEFT's adapters."""
    return mark(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options)), model.max_seq_length)


def mark(model, max_seq_length):
    """fp32 as asked for: there is no autocast on this CPU."""
    model._unsloth_user_float32, model.max_seq_length = True, max_seq_length
    return model


def show_learned(train):
    """Write down what the labels of the first rows say, then train."""

    def replaced(self, *args, **kwargs):
        kept = [[label for label in row["labels"] if label != -100] for row in self.train_dataset.select(range(3))]
        Path("runs/learned.json").write_text(json.dumps([self.processing_class.decode(ids) for ids in kept]))
        return train(self, *args, **kwargs)

    return replaced


FastLanguageModel.from_pretrained = staticmethod(load)
FastLanguageModel.get_peft_model = staticmethod(adapt)
SFTTrainer.train = show_learned(SFTTrainer.train)
os.environ["UNSLOTH_COMPILE_DISABLE"] = "1"
sys.path.insert(0, os.getcwd())
runpy.run_path("train.py", run_name="__main__")
