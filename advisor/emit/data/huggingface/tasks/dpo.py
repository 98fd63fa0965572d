"""The task: the chosen answer before the rejected one, measured against the untrained model (TRL's DPOTrainer)."""

from rows import load_rows
from transformers import AutoModelForCausalLM as Model  # noqa: F401
from trl import DPOConfig as Arguments  # noqa: F401
from trl import DPOTrainer as Trainer  # noqa: F401

ADAPTER_FIRST = False


def load_data(path, tokenizer, config):
    """Rows of prompt, chosen and rejected."""
    return load_rows(path, tokenizer, config["training"])


def model_options(train_rows):
    """What the model needs to know of the data."""
    return {}


def trainer_options(tokenizer, config):
    """The reference is the model without its adapter; without one TRL loads a second model."""
    return {}
