"""The task: one of a few classes for a text (transformers' Trainer)."""

import numpy as np
from rows import load_rows
from transformers import AutoModelForSequenceClassification as Model  # noqa: F401
from transformers import DataCollatorWithPadding
from transformers import Trainer as Trainer
from transformers import TrainingArguments as Arguments  # noqa: F401

ADAPTER_FIRST = True  # it knows no adapters
LABELS = {}  # number of each class, in the order of the training data's sorted labels


def load_data(path, tokenizer, config):
    """Rows of token ids and the number of their class."""
    rows = load_rows(path, tokenizer, config["training"])
    if rows is None:
        return None
    if not LABELS:
        LABELS.update((label, i) for i, label in enumerate(sorted(set(rows["label"]))))
    unknown = sorted(map(str, set(rows["label"]) - LABELS.keys()))
    if unknown:
        raise SystemExit(f"{path} has labels that data/train.jsonl has not: {', '.join(unknown)}.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def encode(row):
        ids = tokenizer(row["text"], truncation=True, max_length=config["max_length"])
        return {**ids, "labels": LABELS[row["label"]]}

    return rows.map(encode, remove_columns=rows.column_names)


def model_options(train_rows):
    """A row of the head for each class."""
    names = {i: str(label) for label, i in LABELS.items()}
    return {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}


def trainer_options(tokenizer, config):
    """Batches padded to their longest row, and the share of right answers on the rows held out."""
    return {"data_collator": DataCollatorWithPadding(tokenizer), "compute_metrics": accuracy}


def accuracy(prediction):
    """The share of rows whose highest score is the right class's."""
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}
