"""GLM-4-9B (glm) and GLM-4-0414 (glm4): few key-value heads with biases, gate and up in one matmul."""

from profiles.blocks import (
    attention_linears,
    decoder,
    fused_gated_linears,
    gated_mlp,
    pre_norms,
    read_attention,
)
from profiles.config_reader import ConfigReader
from profiles.model import Block, LayerGroup, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """Llama's layer; GLM-4-0414 also norms what attention and MLP return."""
    second, hidden_size = f.config["model_type"] == "glm4", f.hidden_size
    attention = read_attention(f, kv_default=2, head_dim=128).replace(
        partial_rotary_factor=f.partial_rotary_factor(0.5)
    )
    norms = pre_norms(hidden_size)
    if second:
        norms = (
            *norms,
            Norm(name="post_self_attn_layernorm", size=hidden_size, place="post_attention"),
            Norm(name="post_mlp_layernorm", size=hidden_size, place="post_mlp"),
        )
    block = Block(
        attention=attention,
        mlp=gated_mlp(f),
        linears=(
            *attention_linears(attention, hidden_size, bias=f.flag("attention_bias", default=True), out_bias=False),
            *fused_gated_linears(hidden_size, f.count("intermediate_size")),
        ),
        norms=norms,
    )
    return decoder(
        f,
        architecture="Glm4ForCausalLM" if second else "GlmForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers(), block=block),),
        tied=False,
        max_positions=131072,
    )
