"""Llama and those that kept its layer: Mistral, Qwen 2 and 3, SmolLM3, Granite, Helium, InternLM 3, Yi (as llama)."""

from typing import NamedTuple

from profiles.blocks import (
    attention_linears,
    decoder,
    gated_linears,
    gated_mlp,
    head_norms,
    layer_groups,
    pre_norms,
    read_attention,
)
from profiles.config_reader import ConfigReader
from profiles.model import Block, ModelSpec


class Variant(NamedTuple):
    """What a class does differently. Defaults are those of the transformers 5.23 config class for a missing key.

    Biases: True, False, or the config keys that say. `slides`: None (never), "all" (a set sliding_window
    serves every layer) or "late" (layers from max_window_layers on, if use_sliding_window).
    """

    architecture: str
    max_positions: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool | tuple[str, ...] = ("attention_bias",)
    out_bias: bool | tuple[str, ...] = ("attention_bias",)
    mlp_bias: bool | tuple[str, ...] = False
    q_norm: bool = False
    tied: bool = False
    slides: str | None = None
    sliding_window: int | None = None


VARIANTS = {
    "llama": Variant("LlamaForCausalLM", 2048, mlp_bias=("mlp_bias",)),
    "internlm3": Variant(
        "LlamaForCausalLM",
        32768,
        2,
        128,
        qkv_bias=("qkv_bias", "attention_bias"),
        out_bias=("qkv_bias", "attention_bias"),
        mlp_bias=("bias", "mlp_bias"),
    ),
    "mistral": Variant(
        "MistralForCausalLM", 131072, 8, qkv_bias=False, out_bias=False, slides="all", sliding_window=4096
    ),
    "ministral": Variant(
        "MinistralForCausalLM", 131072, 8, qkv_bias=False, out_bias=False, slides="all", sliding_window=4096
    ),
    "ministral3": Variant("Ministral3ForCausalLM", 262144, 8, 128, qkv_bias=False, out_bias=False, slides="all"),
    "qwen2": Variant("Qwen2ForCausalLM", 32768, 32, qkv_bias=True, out_bias=False, slides="late", sliding_window=4096),
    "qwen3": Variant("Qwen3ForCausalLM", 32768, 32, 128, q_norm=True, slides="late", sliding_window=4096),
    "smollm3": Variant("SmolLM3ForCausalLM", 32768, 4, mlp_bias=("mlp_bias",), tied=True, slides="late"),
    "granite": Variant("GraniteForCausalLM", 2048, mlp_bias=("mlp_bias",)),
    "helium": Variant("HeliumForCausalLM", 4096, 20, 128, out_bias=False, mlp_bias=("mlp_bias",)),
}


def describe(f: ConfigReader) -> ModelSpec:
    """Pre-norm layers of RMSNorm, rotary attention and a gated MLP."""
    v = VARIANTS[f.config["model_type"]]
    hidden_size, layers = f.hidden_size, f.num_hidden_layers()
    attention = read_attention(f, kv_default=v.num_key_value_heads, head_dim=v.head_dim)
    linears = (
        *attention_linears(attention, hidden_size, bias=_flag(f, v.qkv_bias), out_bias=_flag(f, v.out_bias)),
        *gated_linears(hidden_size, f.count("intermediate_size"), bias=_flag(f, v.mlp_bias)),
    )
    norms = (*pre_norms(hidden_size), *(head_norms(attention.head_dim) if v.q_norm else ()))
    mlp = gated_mlp(f)

    def block(sliding_window: int | None) -> Block:
        own = attention.replace(sliding_window=sliding_window)
        return Block(attention=own, mlp=mlp, linears=linears, norms=norms)

    return decoder(
        f,
        architecture=v.architecture,
        layers=layer_groups(_windows(f, v, layers), block),
        tied=v.tied,
        max_positions=v.max_positions,
    )


def _flag(f: ConfigReader, value: bool | tuple[str, ...]) -> bool:
    return value if isinstance(value, bool) else f.flag(*value, default=False)


def _windows(f: ConfigReader, v: Variant, layers: int) -> list[int | None]:
    window = f.optional_count("sliding_window", v.sliding_window) if v.slides else None
    if v.slides == "late" and not f.flag("use_sliding_window", default=False):
        window = None
    if window is None:
        return [None] * layers
    types = f.items("layer_types", str, layers)
    if types is not None:
        return [window if t == "sliding_attention" else None for t in types]
    first = f.count("max_window_layers", default=28, low=0) if v.slides == "late" else 0
    return [window if i >= first else None for i in range(layers)]
