"""The rows of data/train.jsonl and data/eval.jsonl, and which of their tokens are learned."""

import json
from pathlib import Path

from datasets import Dataset
from trl.chat_template_utils import get_training_chat_template


def load_rows(path, tokenizer, training):
    """The rows of a JSON Lines file. The loss is taken on answers only, wherever rows tell question from answer."""
    if not Path(path).is_file():
        return None
    with open(path, encoding="utf-8") as file:  # load_dataset would take brackets in the folder's name for a pattern
        rows = Dataset.from_list([json.loads(line) for line in file])
    columns = rows.column_names
    chats = "messages" in columns or ("prompt" in columns and not isinstance(rows[0]["prompt"], str))
    if chats and tokenizer.chat_template is None:
        raise SystemExit(
            "The rows are conversations, but this model's tokenizer has no chat template.\n"
            "Take an instruction-tuned model, or rows with prompt and completion as plain text."
        )
    if "messages" not in columns:
        return rows  # prompt + completion: TRL masks the prompt by itself; text: all of it is learned
    try:
        get_training_chat_template(tokenizer)
        training["assistant_only_loss"] = True
        return rows
    except ValueError:
        # TRL cannot mark the assistant's turns of this template: learn the last answer, given all before it.
        print("note: this chat template cannot be masked by turn; of each conversation the last answer is learned")
        return rows.filter(lambda row: row["messages"][-1]["role"] == "assistant").map(
            lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
            remove_columns=["messages"],
        )
