"""Formats: what each row becomes, and what is wrong with the rows that are refused."""

import pytest

from advisor.dataset.formats import FORMATS, alpaca_prompt, detect, normalise, texts
from advisor.dataset.rows import RowError


def chat(*turns):
    """Messages from 'u: hi' strings."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[t[0]], "content": t[3:]} for t in turns]


SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]
SCHEMA = [{"type": "function", "function": {"name": "f"}}]

GOOD = [
    ("alpaca", {"instruction": "q", "output": "r"}, {"prompt": chat("u: q"), "completion": chat("a: r")}),
    (
        "alpaca",
        {"instruction": "q", "input": "more", "output": "r", "system": "s", "history": [["a", "b"]]},
        {"prompt": chat("s: s", "u: a", "a: b", "u: q\nmore"), "completion": chat("a: r")},
    ),
    ("alpaca", {"instruction": "", "input": "x", "output": "r"}, {"prompt": chat("u: x"), "completion": chat("a: r")}),
    ("sharegpt", {"conversations": SHAREGPT}, {"messages": chat("u: q", "a: r")}),
    ("sharegpt", {"conversations": SHAREGPT, "system": "s"}, {"messages": chat("s: s", "u: q", "a: r")}),
    (
        "sharegpt",
        {
            "conversations": [
                *SHAREGPT[:1],
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "1"},
                *SHAREGPT[1:],
            ],
            "tools": SCHEMA,
        },
        {
            "messages": chat("u: q", "a: {}", "t: 1", "a: r"),
            "tools": '[{"type": "function", "function": {"name": "f"}}]',
        },
    ),
    ("messages", {"messages": chat("s: s", "u: q", "a: r")}, {"messages": chat("s: s", "u: q", "a: r")}),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *chat("a: r")]},
        {"messages": chat("u: q", "a: r")},
    ),
    (
        "messages",
        {"messages": [*chat("u: q"), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        {"messages": [*chat("u: q"), {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
    ),
    ("prompt-completion", {"prompt": "q", "completion": "r"}, {"prompt": "q", "completion": "r"}),
    (
        "prompt-completion",
        {"prompt": chat("u: q"), "completion": chat("a: r")},
        {"prompt": chat("u: q"), "completion": chat("a: r")},
    ),
    (
        "preference",
        {"prompt": "q", "chosen": "r", "rejected": "n"},
        {"prompt": "q", "chosen": "r", "rejected": "n"},
    ),
    (
        "preference",
        {"prompt": "q", "chosen": chat("u: q", "a: r"), "rejected": chat("u: q", "a: n")},
        {"prompt": chat("u: q"), "chosen": chat("a: r"), "rejected": chat("a: n")},
    ),
    (
        "preference",
        {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "n"}},
        {"prompt": chat("u: q"), "chosen": chat("a: r"), "rejected": chat("a: n")},
    ),
    (
        "preference",
        {"instruction": "q", "input": "x", "chosen": "r", "rejected": "n"},
        {"prompt": "q\nx", "chosen": "r", "rejected": "n"},
    ),
    (
        "preference",
        {"chosen": "Human: q Assistant: yes", "rejected": "Human: q Assistant: no"},
        {"prompt": "Human: q Assistant: ", "chosen": "yes", "rejected": "no"},
    ),
    (
        "kto",
        {"prompt": "q", "completion": "r", "label": "False"},
        {"prompt": "q", "completion": "r", "label": False},
    ),
    (
        "kto",
        {"messages": chat("u: q", "a: r"), "label": True},
        {"prompt": chat("u: q"), "completion": chat("a: r"), "label": True},
    ),
    ("classification", {"text": "t", "label": "good"}, {"text": "t", "label": "good"}),
    ("classification", {"text": "t", "label": "1"}, {"text": "t", "label": 1}),
    ("classification", {"text": "t", "label": 2.0}, {"text": "t", "label": 2}),
    ("prompt", {"prompt": "1 + 1?", "answer": "2", "id": 7}, {"prompt": "1 + 1?", "answer": "2"}),
    ("prompt", {"prompt": chat("u: q")}, {"prompt": chat("u: q")}),
    ("text", {"text": "t", "label": None, "meta": {}}, {"text": "t"}),
]


@pytest.mark.parametrize(("name", "row", "example"), GOOD)
def test_a_row_is_recognised_and_normalised(name, row, example):
    format = detect(row)
    assert format.name == name
    assert normalise(format, row) == example


@pytest.mark.parametrize(("name", "row", "example"), GOOD)
def test_normalised_examples_are_read_back_unchanged(name, row, example):
    assert normalise(detect(example), example) == example


def test_every_format_is_covered_here():
    assert {format.name for format in FORMATS} == {name for name, _, _ in GOOD}
    assert len({name for name, _, _ in GOOD}) == 9


BAD = [
    ({"instruction": " ", "output": "r"}, "instruction and input are empty"),
    ({"instruction": "q", "output": ["r"]}, "output must be text, found a list"),
    ({"instruction": "q", "output": "r", "history": [["a"]]}, r"history\[0\] must be a pair"),
    ({"instruction": "q", "output": "r", "history": "a"}, "history must be a list"),
    ({"conversations": "hi"}, "conversations must be a list of messages, found text"),
    ({"conversations": []}, "conversations is an empty list"),
    ({"conversations": ["hi"]}, r"conversations\[0\] must be an object with role and content"),
    ({"conversations": [{"from": "alien", "value": "q"}]}, r"conversations\[0\].from is 'alien'; expected one of"),
    ({"conversations": [{"from": "human", "value": 3}]}, r"conversations\[0\].value must be text"),
    ({"conversations": [{"from": "human", "value": "q"}]}, "no assistant turn"),
    ({"conversations": [SHAREGPT[0], {"from": "gpt", "value": ""}]}, r"conversations\[1\] is an empty assistant turn"),
    ({"messages": chat("a: r", "u: q")}, "assistant turn before any user turn"),
    ({"messages": chat("u: q", "s: s", "a: r")}, r"messages\[1\] is a system turn; only the first"),
    ({"messages": [{"content": "q"}]}, r"messages\[0\].role is None"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "part of type 'image'"),
    ({"messages": [*chat("u: q"), {"role": "assistant", "content": "", "tool_calls": ["x"]}]}, "list of objects"),
    ({"messages": chat("u: q", "a: r"), "images": ["a.png"]}, "has images; only text"),
    ({"messages": chat("u: q", "a: r"), "tools": "{"}, "tools is not valid JSON"),
    ({"messages": chat("u: q", "a: r"), "tools": {"a": 1}}, "tools must be a list"),
    ({"prompt": "q", "completion": ""}, "completion is empty"),
    ({"prompt": "q", "completion": chat("a: r")}, "must be two texts or two lists of messages"),
    ({"prompt": chat("u: q"), "completion": chat("u: q")}, "completion must begin with an assistant turn, found user"),
    ({"prompt": "q", "chosen": "r", "rejected": "r"}, "chosen and rejected are the same"),
    ({"prompt": "q", "chosen": "r", "rejected": chat("a: n")}, "must be of one kind"),
    ({"chosen": "yes", "rejected": "no"}, "prompt missing"),
    ({"chosen": chat("a: r"), "rejected": chat("a: n")}, "prompt missing"),
    ({"chosen": chat("u: x", "a: r"), "rejected": chat("u: y", "a: n")}, "must share their first turns"),
    ({"prompt": "q", "completion": "r", "label": "maybe"}, "label must be true or false, found 'maybe'"),
    ({"messages": chat("u: q", "a: r", "u: q"), "label": True}, "last of the messages must be the assistant's"),
    ({"text": "t", "label": 0.5}, "label must be a class number or name, found 0.5"),
    ({"text": 5}, "text must be text, found a number"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_wrong_row_is_refused_with_a_reason(row, message):
    with pytest.raises(RowError, match=message):
        normalise(detect(row), row)


@pytest.mark.parametrize("row", [None, 3, "text", [1], {}, {"question": "q"}])
def test_a_row_of_no_format(row):
    with pytest.raises(RowError, match=r"is expected|no known format"):
        detect(row)


def test_texts_leave_out_labels_and_tools():
    assert list(texts({"text": "abc", "label": "good"})) == ["abc"]
    assert list(texts({"messages": chat("u: q", "a: r"), "tools": "[]"})) == ["q", "r"]
    assert list(texts({"prompt": "p", "completion": "c"})) == ["p", "c"]


def test_the_alpaca_template():
    plain = alpaca_prompt({"prompt": chat("u: q"), "completion": chat("a: r")})
    assert plain["prompt"].endswith("\n\n### Instruction:\nq\n\n### Response:\n")
    assert plain["prompt"].startswith("Below is an instruction")
    assert plain["completion"] == "r"
    longer = alpaca_prompt({"prompt": chat("s: Be kind.", "u: a", "a: b", "u: q"), "completion": chat("a: r")})
    assert longer["prompt"] == (
        "Be kind.\n\n### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nq\n\n### Response:\n"
    )
