"""Shapes of the models in the measured rows, as config.json has them (without what no formula reads)."""

from functools import cache
from typing import Any

from advisor.facts import find_known
from profiles.errors import UnknownNameError
from profiles.families import describe_model
from profiles.model import ModelSpec


def _decoder(
    model_type: str, hidden: int, layers: int, heads: int, kv_heads: int, width: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": width,
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
        **more,
    }


def _mpt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """MPT (llm-foundry yamls): plain 4x MLP, no biases, tied embeddings; OPT without biases has the same matmuls."""
    return {
        "model_type": "opt",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "word_embed_proj_dim": hidden,
        "vocab_size": 50368,
        "max_position_embeddings": 2048,
        "enable_bias": False,
        "tie_word_embeddings": True,
    }


def _qwen1(hidden: int, layers: int, heads: int, width: int, vocab: int) -> dict[str, Any]:
    """Qwen 1: c_attn is q, k and v in one, with bias; w1, w2, c_proj are up, gate, down of intermediate_size / 2."""
    return _decoder("qwen2", hidden, layers, heads, heads, width, vocab, tie_word_embeddings=False)


_LLAMA2_70B = _decoder("llama", 8192, 80, 64, 8, 28672, 32000)
_LLAMA31_8B = _decoder("llama", 4096, 32, 32, 8, 14336, 128256)
_LLAMA32_1B = _decoder("llama", 2048, 16, 32, 8, 8192, 128256, head_dim=64, tie_word_embeddings=True)
_LLAMA32_3B = _decoder("llama", 3072, 28, 24, 8, 8192, 128256, head_dim=128, tie_word_embeddings=True)
_MISTRAL = _decoder("mistral", 4096, 32, 32, 8, 14336, 32000, sliding_window=None)
_MIXTRAL = _decoder("mixtral", 4096, 32, 32, 8, 14336, 32000, num_local_experts=8, num_experts_per_tok=2)
_GEMMA2_9B = _decoder("gemma2", 3584, 42, 16, 8, 14336, 256000, head_dim=256)

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-2-7b": _decoder("llama", 4096, 32, 32, 32, 11008, 32000),
    "llama-2-13b": _decoder("llama", 5120, 40, 40, 40, 13824, 32000),
    "llama-2-70b": _LLAMA2_70B,
    "llama-3.1-8b": _LLAMA31_8B,
    "llama-3.1-70b": _decoder("llama", 8192, 80, 64, 8, 28672, 128256),
    "llama-3.1-405b": _decoder("llama", 16384, 126, 128, 8, 53248, 128256),
    "llama-3.2-1b": _LLAMA32_1B,
    "llama-3.2-3b": _LLAMA32_3B,
    "mistral-7b": _MISTRAL,
    "mistral-7b-v0.3": {**_MISTRAL, "vocab_size": 32768},
    "mistral-small-22b": _decoder("mistral", 6144, 56, 48, 8, 16384, 32768, head_dim=128, sliding_window=None),
    "mixtral-8x7b": _MIXTRAL,
    "granite-3.1-8b": _decoder("granite", 4096, 40, 32, 8, 12800, 49155, tie_word_embeddings=True),
    "tinyllama-1.1b": _decoder("llama", 2048, 22, 32, 4, 5632, 32000),
    "smollm2-135m": _decoder("llama", 576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True),
    "smollm2-360m": _decoder("llama", 960, 32, 15, 5, 2560, 49152, tie_word_embeddings=True),
    "smollm2-1.7b": _decoder("llama", 2048, 24, 32, 32, 8192, 49152, tie_word_embeddings=True),
    "qwen-1.8b": _qwen1(2048, 24, 16, 5504, 151936),
    "qwen-7b": _qwen1(4096, 32, 32, 11008, 151936),
    "qwen-14b": _qwen1(5120, 40, 40, 13696, 152064),
    "qwen-72b": _qwen1(8192, 80, 64, 24576, 152064),
    "qwen2-7b": _decoder("qwen2", 3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-0.5b": _decoder("qwen2", 896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True),
    "qwen2.5-1.5b": _decoder("qwen2", 1536, 28, 12, 2, 8960, 151936, tie_word_embeddings=True),
    "qwen2.5-3b": _decoder("qwen2", 2048, 36, 16, 2, 11008, 151936, tie_word_embeddings=True),
    "qwen2.5-7b": _decoder("qwen2", 3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-32b": _decoder("qwen2", 5120, 64, 40, 8, 27648, 152064),
    "qwen3-14b": _decoder("qwen3", 5120, 40, 40, 8, 17408, 151936, head_dim=128),
    "yi-6b": _decoder("llama", 4096, 32, 32, 4, 11008, 64000),
    "yi-34b": _decoder("llama", 7168, 60, 56, 8, 20480, 64000),
    # Baichuan 2: W_pack is q, k and v in one, without bias
    "baichuan2-7b": _decoder("llama", 4096, 32, 32, 32, 11008, 125696),
    # Phi-3.5 as Unsloth loads it: split into Llama's separate projections
    "phi-3.5-mini": _decoder("llama", 3072, 32, 32, 32, 8192, 32064),
    "codegemma-7b": _decoder("gemma", 3072, 28, 16, 16, 24576, 256000, head_dim=256),
    "gemma-2-9b": _GEMMA2_9B,
    "gemma-3-270m": _decoder("gemma3_text", 640, 18, 4, 1, 2048, 262144, head_dim=256, sliding_window=512),
    "gpt-oss-20b": _decoder(
        "gpt_oss", 2880, 24, 64, 8, 2880, 201088, head_dim=64, num_local_experts=32, num_experts_per_tok=4,
        sliding_window=128,
    ),
    "mpt-125m": _mpt(768, 12, 12),
    "mpt-350m": _mpt(1024, 24, 16),
    "mpt-760m": _mpt(1536, 24, 12),
    "mpt-1b": _mpt(2048, 24, 16),
    "mpt-3b": _mpt(2560, 32, 20),
    "mpt-7b": _mpt(4096, 32, 32),
    "mpt-13b": _mpt(5120, 40, 40),
}  # fmt: skip

# Names as the sources print them, lower case, without the organisation.
NAMES: dict[str, str] = {
    "llama2-7b": "llama-2-7b",
    "llama2-13b": "llama-2-13b",
    "llama2-70b": "llama-2-70b",
    "llama-2-70b-hf": "llama-2-70b",
    "meta-llama-3-8b": "llama-3.1-8b",
    "meta-llama-3.1-8b": "llama-3.1-8b",
    "llama-3-8b-bnb-4bit": "llama-3.1-8b",
    "llama3.1-8b": "llama-3.1-8b",
    "llama3.1-70b": "llama-3.1-70b",
    "llama3-70b": "llama-3.1-70b",
    "llama-3.3-70b-instruct": "llama-3.1-70b",
    "llama-3.2-1b-instruct": "llama-3.2-1b",
    "mistral-7b-v0.1": "mistral-7b",
    "mistral-7b-v0.2": "mistral-7b",
    "openbuddy-zephyr-7b-chat": "mistral-7b",
    "mistral-7b-instruct-v0.3-bnb-4bit": "mistral-7b-v0.3",
    "mistral-small-instruct-2409": "mistral-small-22b",
    "mixtral-8x7b-instruct-v0.1": "mixtral-8x7b",
    "granite-3.1-8b-instruct": "granite-3.1-8b",
    "tinyllama-1.1b-chat-v1.0": "tinyllama-1.1b",
    "qwen-7b-chat": "qwen-7b",
    "qwen-14b-chat": "qwen-14b",
    "qwen2.5-0.5b-instruct": "qwen2.5-0.5b",
    "qwen2.5-1.5b-instruct": "qwen2.5-1.5b",
    "qwen2.5-3b-instruct": "qwen2.5-3b",
    "qwen2.5-7b-instruct": "qwen2.5-7b",
    "qwen3-14b-unsloth-bnb-4bit": "qwen3-14b",
    "yi-6b-chat": "yi-6b",
    "yi-34b-chat": "yi-34b",
    "baichuan2-7b-chat": "baichuan2-7b",
    "phi-3.5-mini-instruct": "phi-3.5-mini",
    "codegemma-7b-bnb-4bit": "codegemma-7b",
    "gemma-3-270m-it": "gemma-3-270m",
}


def model_ref(printed: str) -> str | None:
    """The key of CONFIGS that a source's model name means; None if its shapes are not here."""
    name = printed.rsplit("/", 1)[-1].lower()
    name = NAMES.get(name, name)
    return name if name in CONFIGS else None


@cache
def model_spec(ref: str) -> ModelSpec:
    """The model of a row, by a key of CONFIGS or a name of the catalogue.

    Raises:
        UnknownNameError: it is neither.
    """
    if ref not in CONFIGS:
        row = find_known(ref)
        if row is None:
            raise UnknownNameError("model", ref, (), "Names are the keys of benchmarks/model_configs.py.")
        return describe_model(dict(row.config), ref)
    spec = describe_model(CONFIGS[ref], ref)
    return _experts_as_linears(spec) if ref == "mixtral-8x7b" else spec


def _experts_as_linears(spec: ModelSpec) -> ModelSpec:
    """All Mixtral rows ran on transformers 4, whose experts are nn.Linear: bitsandbytes quantises them."""
    groups = []
    for group in spec.layers:
        linears = tuple(
            x.replace(kind="linear") if x.kind == "parameter" and x.copies > 1 else x for x in group.block.linears
        )
        groups.append(group.replace(block=group.block.replace(linears=linears)))
    return spec.replace(layers=tuple(groups))
