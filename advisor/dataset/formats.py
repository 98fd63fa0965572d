"""Dataset formats: how each is recognised, and how one row becomes a normalised example.

| format | columns | becomes |
|---|---|---|
| alpaca | instruction, output; optional input, system, history | prompt-completion (messages) |
| sharegpt | conversations: [{from, value}]; optional system, tools | messages |
| messages | messages: [{role, content}]; optional tools | messages |
| prompt-completion | prompt, completion: two strings or two message lists | prompt-completion |
| preference | prompt, chosen, rejected (prompt may be conversations, instruction or inside the two) | preference |
| kto | prompt, completion, label; or messages, label | unpaired-preference |
| prompt | prompt; optional answer | prompt |
| classification | text, label | classification |
| text | text | text |

TRL 1.16 takes the normalised forms as they are. Alpaca rows become chats: system, the `history` turns, then
instruction + newline + input as the user's turn, output as the assistant's (LLaMA-Factory's reading; there, answers
in `history` are learned too, here only `output` is). `alpaca_prompt` is the template for models without a chat.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.dataset.rows import RowError
from advisor.dataset.turns import Example, kind_of, read_chat, read_messages, read_text, read_tools
from profiles.dataset import Form

_MEDIA = ("images", "image", "videos", "video", "audios", "audio")


@dataclass(frozen=True)
class Format:
    """A layout of rows: the columns it needs and may have, and how a row is normalised."""

    name: str
    form: Form
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    expected: str
    normalise: Callable[[Example], Example]

    def matches(self, row: Example) -> bool:
        """Whether all needed columns are there (a column of None counts as missing: parquet and CSV fill up)."""
        return all(row.get(name) is not None for name in self.columns)


def detect(row: Any) -> Format:
    """The format of a row. Raises RowError if none fits."""
    if not isinstance(row, dict):
        raise RowError(f"a JSON object is expected, found {kind_of(row)}")
    for format in FORMATS:
        if format.matches(row):
            return format
    columns = ", ".join(map(str, row)) or "(none)"
    raise RowError(f"the columns {columns} are of no known format")


def normalise(format: Format, row: Any) -> Example:
    """The normalised example of a row of `format`. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError(f"a JSON object is expected, found {kind_of(row)}")
    if not format.matches(row):
        missing = [name for name in format.columns if row.get(name) is None]
        other = next((f.name for f in FORMATS if f.matches(row)), None)
        mixed = f"; it looks like {other}, and formats cannot be mixed" if other else ""
        raise RowError(f"{', '.join(missing)} missing{mixed}")
    if media := next((name for name in _MEDIA if row.get(name)), None):
        raise RowError(f"has {media}; only text can be used")
    return format.normalise(row)


def texts(example: Example) -> Iterator[str]:
    """Every text of a normalised example that is trained on or conditions it."""
    for key, value in example.items():
        if key in ("label", "tools", "answer"):
            continue
        if isinstance(value, str):
            yield value
        else:
            yield from (message["content"] for message in value)


def alpaca_prompt(example: Example) -> Example:
    """A prompt-completion example of messages as plain strings: the Stanford Alpaca template.

    Source: github.com/tatsu-lab/stanford_alpaca, train.py PROMPT_DICT["prompt_no_input"]; a system turn takes the
    place of its first sentence, earlier turns are further Instruction and Response parts.
    """
    opening = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    turns = example["prompt"]
    if turns and turns[0]["role"] == "system":
        opening, turns = turns[0]["content"], turns[1:]
    parts = [opening]
    parts += [f"### {'Instruction' if t['role'] == 'user' else 'Response'}:\n{t['content']}" for t in turns]
    return {"prompt": "\n\n".join(parts) + "\n\n### Response:\n", "completion": example["completion"][0]["content"]}


def _alpaca_turns(row: Example) -> list[Example]:
    """System, history and the user's turn."""
    instruction, extra = read_text(row, "instruction", required=False), read_text(row, "input", required=False)
    question = "\n".join(part for part in (instruction, extra) if part.strip())
    if not question:
        raise RowError("instruction and input are empty")
    messages: list[Example] = []
    if system := read_text(row, "system", required=False).strip():
        messages.append({"role": "system", "content": system})
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError(f"history must be a list of [question, answer] pairs, found {kind_of(history)}")
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, str) and x.strip() for x in pair):
            raise RowError(f"history[{i}] must be a pair of non-empty texts")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": question}]


def _alpaca(row: Example) -> Example:
    answer = {"role": "assistant", "content": read_text(row, "output")}
    return {"prompt": _alpaca_turns(row), "completion": [answer]}


def _prompt_completion(row: Example) -> Example:
    if isinstance(row["prompt"], str) and isinstance(row["completion"], str):
        return {"prompt": read_text(row, "prompt"), "completion": read_text(row, "completion"), **read_tools(row)}
    if isinstance(row["prompt"], list) and isinstance(row["completion"], list | dict):
        completion = read_messages(row["completion"], "completion")
        if completion[0]["role"] != "assistant":
            raise RowError(f"completion must begin with an assistant turn, found {completion[0]['role']}")
        return {"prompt": read_messages(row["prompt"], "prompt"), "completion": completion, **read_tools(row)}
    raise RowError(
        "prompt and completion must be two texts or two lists of messages, "
        f"found {kind_of(row['prompt'])} and {kind_of(row['completion'])}"
    )


def _prompt(row: Example) -> Example:
    """Something to answer by itself, and what is right, for whoever judges the answer."""
    prompt = read_text(row, "prompt") if isinstance(row["prompt"], str) else read_messages(row["prompt"], "prompt")
    answer = {"answer": read_text(row, "answer")} if row.get("answer") is not None else {}
    return {"prompt": prompt, **answer, **read_tools(row)}


def _preference(row: Example) -> Example:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError(f"chosen and rejected must be of one kind, found {kind_of(chosen)} and {kind_of(rejected)}")
    prompt: Any
    if isinstance(chosen, str):
        chosen, rejected = read_text(row, "chosen"), read_text(row, "rejected")
        prompt = _preference_prompt(row, text=True)
        if prompt is None:  # both hold the whole conversation (hh-rlhf): split after the last common word
            common = chosen[: _common(chosen, rejected)]
            prompt = common[: max(common.rfind(" "), common.rfind("\n")) + 1]
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
            if not prompt.strip():
                raise RowError("prompt missing, and chosen and rejected have no common beginning")
    else:
        chosen, rejected = read_messages(chosen, "chosen"), read_messages(rejected, "rejected")
        if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
            prompt = _preference_prompt(row, text=False)
            if prompt is None:
                raise RowError("prompt missing")
        else:  # both hold the whole conversation
            n = _common(chosen, rejected)
            prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
            if not (prompt and chosen and rejected):
                raise RowError("chosen and rejected must share their first turns and then differ")
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    if not chosen or not rejected:
        raise RowError("chosen or rejected adds nothing to the other")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many leading elements are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _preference_prompt(row: Example, *, text: bool) -> Any:
    """The prompt of a preference row as text or messages, None if it has no such column."""
    if row.get("instruction") is not None:
        turns = _alpaca_turns(row)
    elif row.get("conversations") is not None:
        turns = read_messages(row["conversations"], "conversations")
    elif isinstance(row.get("prompt"), list):
        turns = read_messages(row["prompt"], "prompt")
    elif row.get("prompt") is not None:
        prompt = read_text(row, "prompt")
        return prompt if text else [{"role": "user", "content": prompt}]
    else:
        return None
    if not text:
        return turns
    if len(turns) > 1:
        raise RowError("chosen and rejected must be messages where the prompt has several turns")
    return turns[0]["content"]


def _kto(row: Example) -> Example:
    label = row["label"]
    if isinstance(label, str):
        label = {"true": True, "false": False, "1": True, "0": False}.get(label.strip().lower())
    if label not in (True, False):
        raise RowError(f"label must be true or false, found {row['label']!r}")
    if row.get("messages") is None:
        return {**_prompt_completion(row), "label": bool(label)}
    messages = read_chat(row, "messages")
    if messages[-1]["role"] != "assistant":
        raise RowError("the last of the messages must be the assistant's, whom the label judges")
    return {"prompt": messages[:-1], "completion": messages[-1:], "label": bool(label)}


def _classification(row: Example) -> Example:
    label = row["label"]
    # CSV has no numbers, and data frames no integers beside missing values.
    if (isinstance(label, str) and label.isdecimal()) or (isinstance(label, float) and label.is_integer()):
        label = int(label)
    if not isinstance(label, str | int) or label == "":
        raise RowError(f"label must be a class number or name, found {row['label']!r}")
    return {"text": read_text(row, "text"), "label": label}


def _plain(row: Example) -> Example:
    return {"text": read_text(row, "text")}


# The first match wins: the more columns a format needs, the earlier it stands.
FORMATS: tuple[Format, ...] = (
    Format("preference", "preference", ("chosen", "rejected"),
           ("prompt", "conversations", "instruction", "input", "system", "history"),
           "prompt, chosen, rejected: texts, or lists of messages", _preference),
    Format("kto", "unpaired-preference", ("prompt", "completion", "label"), ("tools",),
           "prompt, completion (texts or lists of messages), label (true or false)", _kto),
    Format("kto", "unpaired-preference", ("messages", "label"), ("system",),
           "messages ending with the assistant's, label (true or false)", _kto),
    Format("alpaca", "prompt-completion", ("instruction", "output"), ("input", "system", "history"),
           "instruction, output (texts); optional input, system, history", _alpaca),
    Format("sharegpt", "messages", ("conversations",), ("system", "tools"),
           'conversations: [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]',
           lambda row: {"messages": read_chat(row, "conversations"), **read_tools(row)}),
    Format("messages", "messages", ("messages",), ("system", "tools"),
           'messages: [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
           lambda row: {"messages": read_chat(row, "messages"), **read_tools(row)}),
    Format("prompt-completion", "prompt-completion", ("prompt", "completion"), ("tools",),
           "prompt and completion: two texts, or two lists of messages", _prompt_completion),
    Format("prompt", "prompt", ("prompt",), ("answer", "tools"),
           "prompt (a text or messages); optional answer (a text)", _prompt),
    Format("classification", "classification", ("text", "label"), (), "text, label (class number or name)",
           _classification),
    Format("text", "text", ("text",), (), "text", _plain),
)  # fmt: skip
