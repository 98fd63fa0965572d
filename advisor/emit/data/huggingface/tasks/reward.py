"""The task: a score that is higher for the chosen answer than for the rejected one (TRL's RewardTrainer)."""

from rows import load_rows
from transformers import AutoModelForSequenceClassification as Model  # noqa: F401
from trl import RewardConfig as Arguments  # noqa: F401
from trl import RewardTrainer as Trainer  # noqa: F401

ADAPTER_FIRST = False


def load_data(path, tokenizer, config):
    """Rows of prompt, chosen and rejected; the trainer leaves out those that are longer than max_length."""
    return load_rows(path, tokenizer, config["training"])


def model_options(train_rows):
    """One number for a sequence."""
    return {"num_labels": 1}


def trainer_options(tokenizer, config):
    """Nothing beside the usual."""
    return {}
