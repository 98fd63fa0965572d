"""The modules that PEFT adapts where a file names none: a few a layer, by model type.

peft 0.21.2 utils/constants.py TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, the types that we have facts of; for
any other PEFT stops and asks.
"""

_QUERY_AND_VALUE = ("q_proj", "v_proj")

DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {
    "bloom": ("query_key_value",),
    "falcon": ("query_key_value",),
    "gemma": _QUERY_AND_VALUE,
    "gemma2": _QUERY_AND_VALUE,
    "gemma3_text": _QUERY_AND_VALUE,
    "gpt2": ("c_attn",),
    "gpt_neo": _QUERY_AND_VALUE,
    "gpt_neox": ("query_key_value",),
    "gptj": _QUERY_AND_VALUE,
    "llama": _QUERY_AND_VALUE,
    "mistral": _QUERY_AND_VALUE,
    "mixtral": _QUERY_AND_VALUE,
    "opt": _QUERY_AND_VALUE,
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "qwen2": _QUERY_AND_VALUE,
    "qwen3": _QUERY_AND_VALUE,
    "stablelm": _QUERY_AND_VALUE,
}
