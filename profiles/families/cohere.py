"""Cohere Command R: one LayerNorm without bias, attention and MLP side by side, tied head."""

from profiles.blocks import (
    attention_linears,
    decoder,
    gated_linears,
    gated_mlp,
    layer_groups,
    read_attention,
    sliding_layers,
)
from profiles.config_reader import ConfigReader
from profiles.model import Block, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """Parallel layers; Command R7B (cohere2) slides in three layers of four, and rotates only there."""
    second, hidden_size, layers = f.config["model_type"] == "cohere2", f.hidden_size, f.num_hidden_layers()
    attention = read_attention(f)
    norms = [Norm(name="input_layernorm", size=hidden_size, kind="layernorm", wide=True)]
    if not second and f.flag("use_qk_norm", default=False):
        norms += [
            Norm(name="self_attn.q_norm", size=attention.q_width, kind="layernorm", wide=True, place="q"),
            Norm(name="self_attn.k_norm", size=attention.kv_width, kind="layernorm", wide=True, place="k"),
        ]
    linears = (
        *attention_linears(attention, hidden_size, bias=f.flag("attention_bias", default=False)),
        *gated_linears(hidden_size, f.count("intermediate_size")),
    )
    window = f.count("sliding_window", default=4096) if second else None

    def block(slides: bool) -> Block:
        own = attention.replace(sliding_window=window if slides else None, rotary=slides or not second)
        return Block(attention=own, mlp=gated_mlp(f), linears=linears, norms=tuple(norms), parallel=True)

    kinds = [False] * layers
    if second:
        kinds = sliding_layers(f, layers, full_every=f.count("sliding_window_pattern", default=4))
    return decoder(
        f,
        architecture="Cohere2ForCausalLM" if second else "CohereForCausalLM",
        layers=layer_groups(kinds, block),
        tied=True,
        max_positions=8192,
        norm_kind="layernorm",
        norm_wide=True,
    )
