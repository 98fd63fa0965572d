"""Normalised examples -> rows that LLaMA-Factory reads: every conversation is one list of messages.

data/converter.py 0.9.5 leaves out, with a warning in its log, what does not alternate between user and assistant.
Here that is an error.
"""

from typing import Any

from profiles.errors import UnsupportedError

Row = dict[str, Any]
HINT = "Mend the example, or choose --platform hf, which takes it."


def adapt_row(example: Row) -> Row:
    """The row; plain texts stay as they are. Raises UnsupportedError for what LLaMA-Factory would leave out."""
    if "tools" in example:
        raise UnsupportedError("tools are not written for LLaMA-Factory", HINT)
    if not any(isinstance(value, list) for value in example.values()):
        return example
    if "messages" in example:
        return {"messages": _turns(example["messages"])}
    if "chosen" in example:
        chosen, rejected = _one(example, "chosen"), _one(example, "rejected")
        return {"messages": _turns([*example["prompt"], chosen])[:-1], "chosen": chosen, "rejected": rejected}
    row = {"messages": _turns([*example["prompt"], _one(example, "completion")])}
    return row if "label" not in example else {**row, "label": example["label"]}


def _one(example: Row, name: str) -> Row:
    """The single answer in a column."""
    if len(example[name]) != 1:
        raise UnsupportedError(
            f"{name} has {len(example[name])} turns; LLaMA-Factory learns one answer to a prompt", HINT
        )
    role, content = example[name][0]["role"], example[name][0]["content"]
    return {"role": role, "content": content}


def _turns(messages: list[Row]) -> list[Row]:
    """The conversation without what LLaMA-Factory has no place for."""
    if any("tool_calls" in message or message["role"] == "tool" for message in messages):
        raise UnsupportedError("calls of tools are not written for LLaMA-Factory", HINT)
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise UnsupportedError(
            f"the turns are {', '.join(roles)}; LLaMA-Factory takes user and assistant by turns, an answer last", HINT
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]
