"""Architecture families: one file each with `describe(reader)`, imported when a config names one of its types."""

from importlib import import_module
from typing import Any

from profiles.config_reader import ConfigReader
from profiles.dropout import with_dropout
from profiles.errors import InvalidModelError, UnsupportedError
from profiles.model import ModelSpec

# File of this folder -> the model types that it describes. A table, because importing every file costs an answer 15 ms.
FAMILIES = {
    "bert": ("bert", "roberta", "xlm-roberta"),
    "bloom": ("bloom",),
    "cohere": ("cohere", "cohere2"),
    "deberta": ("deberta-v2",),
    "deepseek": ("deepseek_v2", "deepseek_v3"),
    "distilbert": ("distilbert",),
    "falcon": ("falcon",),
    "gemma": ("gemma", "gemma2", "gemma3_text"),
    "glm": ("glm", "glm4"),
    "glm4_moe": ("glm4_moe",),
    "gpt2": ("gpt2",),
    "gpt_neo": ("gpt_neo",),
    "gpt_neox": ("gpt_neox",),
    "gpt_oss": ("gpt_oss",),
    "gptj": ("gptj",),
    "llama": (
        "llama",
        "mistral",
        "ministral",
        "ministral3",
        "qwen2",
        "qwen3",
        "smollm3",
        "granite",
        "helium",
        "internlm3",
    ),
    "llama4": ("llama4_text",),
    "mixtral": ("mixtral",),
    "modernbert": ("modernbert",),
    "olmo": ("olmo", "olmo2", "olmo3"),
    "opt": ("opt",),
    "phi": ("phi",),
    "phi3": ("phi3",),
    "qwen_moe": ("qwen2_moe", "qwen3_moe"),
    "stablelm": ("stablelm",),
    "starcoder2": ("starcoder2",),
}
FAMILY_OF = {model_type: family for family, types in FAMILIES.items() for model_type in types}

# Multimodal configs whose language model is described alone; value: what transformers builds for the whole.
COMPOSITES = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
}


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
    if model_type not in FAMILY_OF:
        custom = "it needs the repository's own code (auto_map), and " if config.get("auto_map") else ""
        raise UnsupportedError(
            f"{name}: architecture {model_type[:60]!r} is not known: {custom}its shapes would be a guess",
            f"Known: {', '.join(sorted([*FAMILY_OF, *COMPOSITES]))}.",
        )
    reader = ConfigReader(config, name)
    spec: ModelSpec = with_dropout(import_module(f"{__name__}.{FAMILY_OF[model_type]}").describe(reader), reader)
    stored = config.get("quantization_config")
    if not isinstance(stored, dict):
        return spec
    method = stored.get("quant_method")
    stored_as = method[:40] if isinstance(method, str) else "quantised"
    return spec.replace(notes=(*spec.notes, f"the checkpoint is stored as {stored_as}; sizes are those without it"))


def _describe_text_part(config: dict[str, Any], name: str, whole: str) -> ModelSpec:
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise InvalidModelError(f"{name}: text_config", "is missing", "A multimodal config.json holds its text_config.")
    if text.get("model_type") in tuple(COMPOSITES):
        raise InvalidModelError(f"{name}: text_config.model_type", f"{text['model_type']!r} is no language model")
    # A tie_word_embeddings of the whole also rules its language model.
    tied = {k: config[k] for k in ("tie_word_embeddings",) if k in config and k not in text}
    spec = describe_model({**text, **tied}, name)
    return spec.replace(
        notes=(
            *spec.notes,
            f"the language model ({spec.architecture}) alone: {whole} adds a vision tower that is not counted",
        )
    )
