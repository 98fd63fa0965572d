"""The task: answers that the model samples by itself and reward.py judges (TRL's GRPOTrainer)."""

from reward import reward
from rows import load_rows
from transformers import AutoModelForCausalLM as Model  # noqa: F401
from trl import GRPOConfig as Arguments  # noqa: F401
from trl import GRPOTrainer as Trainer  # noqa: F401

ADAPTER_FIRST = False


def load_data(path, tokenizer, config):
    """Rows of prompt and answer, without the prompts that are too long."""
    rows = load_rows(path, tokenizer, config["training"])
    if rows is None:
        return None
    if "completion" in rows.column_names:
        rows = rows.map(lambda row: {"answer": answer_of(row["completion"])}, remove_columns=["completion"])
    kept = rows.filter(lambda row: prompt_tokens(row["prompt"], tokenizer) <= config["max_prompt_length"])
    if len(kept) < len(rows):
        print(f"note: {len(rows) - len(kept)} prompts of {path} are longer than max_prompt_length and left out")
    return kept


def answer_of(completion):
    """The text of an answer."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def prompt_tokens(prompt, tokenizer):
    """Its tokens, with the chat template where it is a conversation."""
    if isinstance(prompt, str):
        return len(tokenizer(prompt).input_ids)
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def model_options(train_rows):
    """What the model needs to know of the data."""
    return {}


def trainer_options(tokenizer, config):
    """What judges the samples."""
    return {"reward_funcs": reward}
