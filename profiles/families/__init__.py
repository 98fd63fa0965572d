"""Architecture families: one file each, `MODEL_TYPES` and `describe(reader)`; found in this folder by model_type."""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from profiles.config_reader import ConfigReader
from profiles.errors import InvalidModelError, UnsupportedError
from profiles.model import ModelSpec

# Multimodal configs whose language model is described alone; value: what transformers builds for the whole.
COMPOSITES = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
}


@cache
def registry() -> dict[str, Callable[[ConfigReader], ModelSpec]]:
    """model_type -> the function that describes it, from every file of this folder."""
    found: dict[str, Callable[[ConfigReader], ModelSpec]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found.update(dict.fromkeys(module.MODEL_TYPES, module.describe))
    return found


def describe_model(config: dict[str, Any], name: str) -> ModelSpec:
    """Describe the model that transformers 5.23 would build from `config` (a config.json), named `name`.

    Of a multimodal config (gemma3, mistral3, llama4) only the language model is described; the record's `notes` say
    so. Raises InvalidModelError (a field is missing or cannot be) and UnsupportedError (an unknown architecture).
    """
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise InvalidModelError(name, "config.json is not a JSON object", "Pass the parsed content of config.json.")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise InvalidModelError(
            f"{name}: model_type", "is missing or not a string", "config.json names its architecture as model_type."
        )
    if model_type in COMPOSITES:
        return _describe_text_part(config, name, COMPOSITES[model_type])
    if model_type not in registry():
        custom = "it needs the repository's own code (auto_map), and " if config.get("auto_map") else ""
        raise UnsupportedError(
            f"{name}: architecture {model_type[:60]!r} is not known: {custom}its shapes would be a guess",
            f"Known: {', '.join(sorted([*registry(), *COMPOSITES]))}.",
        )
    return registry()[model_type](ConfigReader(config, name))


def _describe_text_part(config: dict[str, Any], name: str, whole: str) -> ModelSpec:
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise InvalidModelError(f"{name}: text_config", "is missing", "A multimodal config.json holds its text_config.")
    if text.get("model_type") in COMPOSITES:
        raise InvalidModelError(f"{name}: text_config.model_type", f"{text['model_type']!r} is no language model")
    # A tie_word_embeddings of the whole also rules its language model.
    tied = {k: config[k] for k in ("tie_word_embeddings",) if k in config and k not in text}
    spec = describe_model({**text, **tied}, name)
    return spec.replace(
        notes=(*spec.notes, f"language model of {whole} only: its vision tower and projector are not counted")
    )
