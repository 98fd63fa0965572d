"""Record what the installed LLaMA-Factory knows: its arguments, and the chat template of each model that it lists.

Run with its own interpreter from the repository's root, after changing the version in profiles/data/platforms.json:

    PYTHON_OF_LLAMAFACTORY tests/golden/record_llamafactory.py
"""

import dataclasses
import enum
import json
import typing
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path, PurePath

from llamafactory.extras import constants
from llamafactory.hparams import parser

ARGUMENTS = Path("tests/golden/llamafactory_arguments.json")
TEMPLATES = Path("advisor/emit/data/llamafactory/templates.json")
ABOUT = {
    "about": "llamafactory " + version("llamafactory") + ", transformers " + version("transformers"),
    "regenerate": "PYTHON_OF_LLAMAFACTORY tests/golden/record_llamafactory.py",
}
LOGGED_BY_NAME = frozenset({"hf_hub_token", "ms_hub_token", "om_hub_token", "hub_token"})


def describe(hint):
    """A type as names of JSON types, or the choices of a literal or an enum."""
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": list(typing.get_args(hint))}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"choices": [str(member.value) for member in hint]}
    if typing.get_args(hint) and typing.get_origin(hint) not in (list, dict):
        parts = [describe(part) for part in typing.get_args(hint)]
        merged = {"types": sorted({name for part in parts for name in part.get("types", ())})}
        choices = [choice for part in parts for choice in part.get("choices", ())]
        return merged | ({"choices": choices} if choices else {})
    return {"types": [getattr(typing.get_origin(hint) or hint, "__name__", str(hint))]}


def arguments():
    """Every field of the classes that `get_train_args` fills."""
    found = {}
    for kind in parser._TRAIN_ARGS:
        hints = typing.get_type_hints(kind)
        found |= {field.name: describe(hints[field.name]) for field in dataclasses.fields(kind) if field.init}
    return {name: found[name] for name in sorted(found.keys() - LOGGED_BY_NAME)}


def templates():
    """Models by template; two owners' models of one name have one template."""
    by_model = {}
    for name, template in constants.DEFAULT_TEMPLATE.items():
        for path in constants.SUPPORTED_MODELS[name].values():
            model = PurePath(path).name.lower().removeprefix("meta-")
            assert by_model.setdefault(model, template) == template, (model, template)
    found = defaultdict(list)
    for model, template in sorted(by_model.items()):
        found[template].append(model)
    return dict(sorted(found.items()))


def write(path, content):
    """One entry a line, so that changes can be read."""
    head = "".join(f'  "{key}": {json.dumps(value)},\n' for key, value in ABOUT.items())
    rows = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    path.write_text("{\n" + head + f'  "{path.stem.split("_")[-1]}": {{\n{rows}\n  }}\n}}\n', encoding="utf-8")


write(ARGUMENTS, arguments())
write(TEMPLATES, templates())
