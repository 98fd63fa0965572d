"""Phi-3, 3.5, 4 and 4-mini: Llama's layer with q, k and v in one matmul and gate and up in another."""

from profiles.blocks import decoder, fused_gated_linears, gated_mlp, pre_norms, read_attention
from profiles.config_reader import ConfigReader
from profiles.model import Block, LayerGroup, Linear, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """Pre-norm layers; a set sliding_window serves every layer."""
    hidden_size = f.hidden_size
    attention = read_attention(f).replace(
        sliding_window=f.optional_count("sliding_window"), partial_rotary_factor=f.partial_rotary_factor()
    )
    qkv = attention.q_width + 2 * attention.kv_width
    block = Block(
        attention=attention,
        mlp=gated_mlp(f),
        linears=(
            Linear(name="self_attn.qkv_proj", role="qkv", in_features=hidden_size, out_features=qkv),
            Linear(name="self_attn.o_proj", role="o", in_features=attention.q_width, out_features=hidden_size),
            *fused_gated_linears(hidden_size, f.count("intermediate_size")),
        ),
        norms=pre_norms(hidden_size),
    )
    return decoder(
        f,
        architecture="Phi3ForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers(), block=block),),
        tied=False,
        max_positions=4096,
    )
