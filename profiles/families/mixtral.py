"""Mixtral: Mistral's attention, eight experts of which two serve a token."""

from profiles.blocks import (
    attention_linears,
    decoder,
    expert_linears,
    pre_norms,
    read_attention,
    read_experts,
)
from profiles.config_reader import ConfigReader
from profiles.model import Block, LayerGroup, Mlp, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """Every layer is a mixture; the experts are two fused parameters."""
    hidden_size, width = f.hidden_size, f.count("intermediate_size")
    attention = read_attention(f, kv_default=8).replace(sliding_window=f.optional_count("sliding_window"))
    experts, active = read_experts(f, "num_local_experts", "num_experts")
    block = Block(
        attention=attention,
        mlp=Mlp(
            intermediate_size=width,
            activation=f.text("hidden_act", default="silu"),
            experts=experts,
            experts_per_token=active,
        ),
        linears=(
            *attention_linears(attention, hidden_size),
            *expert_linears(hidden_size, width, experts=experts, active=active),
        ),
        norms=pre_norms(hidden_size),
    )
    return decoder(
        f,
        architecture="MixtralForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers(), block=block),),
        tied=False,
        max_positions=131072,
    )
