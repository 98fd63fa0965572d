"""Parts of a row: texts, messages, conversations and tools, checked and brought into one shape."""

import json
from typing import Any

from advisor.dataset.rows import RowError

Example = dict[str, Any]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "assistant",  # its text, a JSON call, is what the assistant says
    "tool": "tool", "observation": "tool", "function_response": "tool", "function": "tool",
}  # fmt: skip


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {str: "text", list: "a list", dict: "an object", bool: "true/false", type(None): "nothing (null)"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def read_text(row: Example, name: str, *, required: bool = True) -> str:
    """The text of a column; blank only if not `required`. Raises RowError, as all here."""
    value = row.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{name} must be text, found {kind_of(value)}")
    if required and not value.strip():
        raise RowError(f"{name} is empty")
    return value


def _content(value: Any, where: str) -> str:
    """A message's text: a string, or OpenAI's list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(f"{where} must be text, found {kind_of(value)}")
    pieces = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise RowError(f"{where} has a part of type {kind!r}; only text parts can be used")
        pieces.append(_content(part.get("text", part.get("value")), where))
    return "".join(pieces)


def _message(value: Any, where: str) -> Example:
    if not isinstance(value, dict):
        raise RowError(f"{where} must be an object with role and content (or from and value), found {kind_of(value)}")
    role_key, content_key = ("from", "value") if value.get("from") is not None else ("role", "content")
    role = value.get(role_key)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise RowError(f"{where}.{role_key} is {role!r}; expected one of {', '.join(ROLES)}")
    message: Example = {"role": ROLES[role.lower()]}
    calls = value.get("tool_calls")
    content = value.get(content_key)
    message["content"] = "" if content is None and calls else _content(content, f"{where}.{content_key}")
    if calls:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise RowError(f"{where}.tool_calls must be a list of objects")
        message["tool_calls"] = calls
    message.update({key: value[key] for key in ("name", "tool_call_id") if isinstance(value.get(key), str)})
    if message["role"] == "assistant" and not calls and not message["content"].strip():
        raise RowError(f"{where} is an empty assistant turn")
    return message


def read_messages(value: Any, name: str) -> list[Example]:
    """A list of messages, each {role, content}, roles as the chat templates know them."""
    if isinstance(value, dict):  # LLaMA-Factory's preference rows hold one bare message
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"{name} must be a list of messages, found {kind_of(value)}")
    if not value:
        raise RowError(f"{name} is an empty list")
    messages = [_message(m, f"{name}[{i}]") for i, m in enumerate(value)]
    for i, message in enumerate(messages):
        if message["role"] == "system" and i:
            raise RowError(f"{name}[{i}] is a system turn; only the first may be one")
    return messages


def read_chat(row: Example, name: str) -> list[Example]:
    """A whole conversation, with the row's `system` column in front, that has an assistant turn to learn."""
    messages = read_messages(row[name], name)
    if messages[0]["role"] != "system" and (system := read_text(row, "system", required=False).strip()):
        messages.insert(0, {"role": "system", "content": system})
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise RowError(f"{name} has no assistant turn, so there is nothing to learn")
    if "user" not in roles[: roles.index("assistant")]:
        raise RowError(f"{name} has an assistant turn before any user turn")
    return messages


def read_tools(row: Example) -> Example:
    """The `tools` column as JSON text, as TRL accepts it: schemas differ too much for one Arrow type."""
    tools = row.get("tools")
    if not tools:
        return {}
    text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    try:
        if not isinstance(json.loads(text), list):
            raise RowError("tools must be a list of JSON schemas")
    except RecursionError:
        raise RowError("tools is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RowError(f"tools is not valid JSON: {error.msg}") from None
    return {"tools": text}
