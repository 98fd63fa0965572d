"""The task: the chosen answer learned, and its odds against the rejected one (ORPOTrainer, experimental in TRL)."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from rows import load_rows
from transformers import AutoModelForCausalLM as Model  # noqa: F401
from trl.experimental.orpo import ORPOConfig as Arguments  # noqa: F401
from trl.experimental.orpo import ORPOTrainer as Trainer  # noqa: F401

ADAPTER_FIRST = True  # it would make fp32 of what a quantised base does not quantise


def load_data(path, tokenizer, config):
    """Rows of prompt, chosen and rejected."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return load_rows(path, tokenizer, config["training"])


def model_options(train_rows):
    """What the model needs to know of the data."""
    return {}


def trainer_options(tokenizer, config):
    """There is no reference model."""
    return {}
