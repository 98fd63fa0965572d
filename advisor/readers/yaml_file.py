"""YAML text -> mapping, whatever the text: one clear error or a mapping with text keys."""

import re
from itertools import accumulate
from typing import Any

import yaml

from profiles.errors import InvalidInputError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but 2e-4 is a number (omegaconf 2.4 _yaml.py reads LLaMA-Factory's files so; TRL and
    axolotl turn the text into one) and dates stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


DEEPEST = 100  # brackets; PyYAML's time grows with the square of it
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in `text`.

    Raises:
        InvalidInputError: it is no YAML, or no mapping; with the line.
    """
    if max(accumulate(_STEPS.get(letter, 0) for letter in text), default=0) > DEEPEST:
        raise InvalidInputError(where, f"is nested more than {DEEPEST} levels deep")
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise InvalidInputError(f"{where}{line}", f"is not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, AttributeError, KeyError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise InvalidInputError(where, f"is not YAML: {said}") from None
    if not isinstance(content, dict):
        raise InvalidInputError(where, "holds no keys with values")
    return {str(key): value for key, value in content.items()}
