"""A conversation -> the text that the model is trained on, by the tokenizer's own chat template."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from advisor.dataset.turns import Example
from profiles.errors import InvalidInputError

Render = Callable[[Example], str]

# Older versions let a template out of the sandbox (transformers 5.23 chat_template_utils refuses them too).
JINJA_SAFE_SINCE = (3, 1, 6)

_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a model's folder, with chat_template.jinja in it where that file exists."""
    config: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise InvalidInputError(str(path), f"cannot be read: {error}") from None
        if not isinstance(config, dict):
            raise InvalidInputError(str(path), "must be a JSON object")
    template = folder / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    return config


def special_token(config: dict[str, Any], name: str) -> str:
    """The text of `bos_token`, `eos_token`, ...; empty if there is none."""
    token = config.get(name)
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def renderer(config: dict[str, Any], where: Path) -> Render | None:
    """A function from an example's messages (and tools) to text; None without a template or a safe jinja2.

    Raises InvalidInputError if the template is broken. Templates come from strangers: they run sandboxed, and
    with the settings of transformers' apply_chat_template.
    """
    source = config.get("chat_template")
    if isinstance(source, list):  # several named ones
        source = next((t.get("template") for t in source if t.get("name") == "default"), None)
    if not isinstance(source, str):
        return None
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return None
    if tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3]) < JINJA_SAFE_SINCE:
        return None

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    try:  # {% generation %} only marks what is learned
        template = environment.from_string(
            _GENERATION.sub(lambda m: m[1] + ("endif" if m[2] else "if true") + m[3], source)
        )
    except jinja2.TemplateError as error:
        raise InvalidInputError(str(where), f"the chat template is broken: {error}") from None
    tokens = {name: special_token(config, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}

    def render(example: Example) -> str:
        tools = json.loads(example["tools"]) if "tools" in example else None
        return template.render(messages=example["messages"], tools=tools, add_generation_prompt=False, **tokens)

    return render
