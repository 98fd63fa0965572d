"""OLMo: a first generation without norm weights, then norms behind attention and MLP, and over the whole q and k."""

from profiles.blocks import (
    attention_linears,
    decoder,
    gated_linears,
    gated_mlp,
    layer_groups,
    pre_norms,
    read_attention,
    sliding_layers,
)
from profiles.config_reader import ConfigReader
from profiles.model import Block, ModelSpec, Norm

ARCHITECTURES = {"olmo": "OlmoForCausalLM", "olmo2": "Olmo2ForCausalLM", "olmo3": "Olmo3ForCausalLM"}


def describe(f: ConfigReader) -> ModelSpec:
    """Llama's matmuls, other norms; OLMo 3 attends fully in every fourth layer only."""
    model_type, hidden_size, layers = f.config["model_type"], f.hidden_size, f.num_hidden_layers()
    attention = read_attention(f)
    norms: tuple[Norm, ...]
    if model_type == "olmo":
        norms = tuple(n.replace(kind="layernorm", affine=False) for n in pre_norms(hidden_size))
    else:
        norms = (
            Norm(name="self_attn.q_norm", size=attention.q_width, place="q", wide=True),
            Norm(name="self_attn.k_norm", size=attention.kv_width, place="k", wide=True),
            Norm(name="post_attention_layernorm", size=hidden_size, place="post_attention", wide=True),
            Norm(name="post_feedforward_layernorm", size=hidden_size, place="post_mlp", wide=True),
        )
    linears = (
        *attention_linears(attention, hidden_size, bias=f.flag("attention_bias", default=False)),
        *gated_linears(hidden_size, f.count("intermediate_size")),
    )
    window = f.count("sliding_window", default=4096) if model_type == "olmo3" else None

    def block(slides: bool) -> Block:
        own = attention.replace(sliding_window=window if slides else None)
        return Block(attention=own, mlp=gated_mlp(f), linears=linears, norms=norms)

    kinds = sliding_layers(f, layers, full_every=4) if window else [False] * layers
    return decoder(
        f,
        architecture=ARCHITECTURES[model_type],
        layers=layer_groups(kinds, block),
        tied=False,
        max_positions=2048,
        norm_kind="layernorm" if model_type == "olmo" else "rmsnorm",
        norm_affine=model_type != "olmo",
        norm_wide=model_type != "olmo",
    )
