"""The task: answers that are labelled good or bad (TRL's KTOTrainer)."""

from rows import load_rows
from transformers import AutoModelForCausalLM as Model  # noqa: F401
from trl import KTOConfig as Arguments  # noqa: F401
from trl import KTOTrainer as Trainer  # noqa: F401

ADAPTER_FIRST = False


def load_data(path, tokenizer, config):
    """Rows of prompt, completion and label; shuffled here, since the trainer takes them in their order."""
    rows = load_rows(path, tokenizer, config["training"])
    return None if rows is None else rows.shuffle(seed=config["training"]["seed"])


def model_options(train_rows):
    """What the model needs to know of the data."""
    return {}


def trainer_options(tokenizer, config):
    """The reference is the model without its adapter; without one TRL loads a second model."""
    return {}
