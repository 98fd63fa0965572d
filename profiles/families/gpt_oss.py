"""GPT-OSS: attention with sinks and biases, every other layer sliding, experts whose biases are bare parameters."""

from profiles.blocks import (
    attention_linears,
    decoder,
    expert_linears,
    layer_groups,
    pre_norms,
    read_attention,
    read_experts,
    sliding_layers,
)
from profiles.config_reader import ConfigReader
from profiles.model import Block, Mlp, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """`gate_up_proj_bias` and `down_proj_bias` do not end in `.bias`: they count as other parameters."""
    hidden_size, layers, width = f.hidden_size, f.num_hidden_layers(), f.count("intermediate_size")
    attention = read_attention(f, kv_default=8, head_dim=64).replace(sinks=True)
    experts, active = read_experts(f, "num_local_experts", "num_experts")
    router, *fused = expert_linears(hidden_size, width, experts=experts, active=active, router="router")
    linears = (
        *attention_linears(attention, hidden_size, bias=f.flag("attention_bias", default=True)),
        router.replace(bias=True),
        *fused,
    )
    mlp = Mlp(
        intermediate_size=width,
        activation=f.text("hidden_act", default="silu"),
        experts=experts,
        experts_per_token=active,
    )
    window = f.count("sliding_window", default=128)

    def block(slides: bool) -> Block:
        return Block(
            attention=attention.replace(sliding_window=window if slides else None),
            mlp=mlp,
            linears=linears,
            norms=tuple(n.replace(wide=True) for n in pre_norms(hidden_size)),
            other_parameters=attention.num_heads + experts * (2 * width + hidden_size),
        )

    return decoder(
        f,
        architecture="GptOssForCausalLM",
        layers=layer_groups(sliding_layers(f, layers, full_every=2), block),
        tied=False,
        max_positions=131072,
        norm_wide=True,
    )
