"""The task: answers, or whole texts (TRL's SFTTrainer)."""

from rows import load_rows
from transformers import AutoModelForCausalLM as Model  # noqa: F401
from trl import SFTConfig as Arguments  # noqa: F401
from trl import SFTTrainer as Trainer  # noqa: F401

ADAPTER_FIRST = False


def load_data(path, tokenizer, config):
    """The rows, and in `config` which of their tokens are learned."""
    return load_rows(path, tokenizer, config["training"])


def model_options(train_rows):
    """What the model needs to know of the data."""
    return {}


def trainer_options(tokenizer, config):
    """What the trainer needs beside the usual."""
    return {}
