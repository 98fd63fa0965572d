"""What GRPO rewards: write your own, a number for each completion; higher is better.

`completions` are texts, or lists of messages where the prompts are conversations. Other columns of the data come under
their own names, a value for each completion.
"""

import re


def reward(completions, answer=None, **columns):
    """1 where the last number of a completion is the last one of the right answer (or the text holds the answer)."""
    if answer is None:
        raise SystemExit("The data have no answers to compare with: write a reward into reward.py.")
    return [score(text_of(text), right) for text, right in zip(completions, answer, strict=True)]


def text_of(completion):
    """The text of what was sampled."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def score(text, right):
    """1 or 0."""
    wanted, found = numbers(right), numbers(text)
    if wanted:
        return float(bool(found) and found[-1] == wanted[-1])
    return float(right.strip().lower() in text.lower())


def numbers(text):
    """All numbers in a text, without thousands' commas."""
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))]
