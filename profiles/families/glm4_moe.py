"""GLM-4.5 (glm4_moe): grouped attention, a dense first layer, then experts with a shared one beside them."""

from profiles.blocks import (
    attention_linears,
    decoder,
    expert_linears,
    gated_linears,
    head_norms,
    layer_groups,
    pre_norms,
    read_attention,
    read_experts,
)
from profiles.config_reader import ConfigReader
from profiles.model import Block, Mlp, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """The router's correction bias is a buffer, and multi-token-prediction layers are not loaded."""
    hidden_size, layers = f.hidden_size, f.num_hidden_layers()
    attention = read_attention(f, kv_default=8).replace(partial_rotary_factor=f.partial_rotary_factor(0.5))
    attention_parts = attention_linears(
        attention, hidden_size, bias=f.flag("attention_bias", default=False), out_bias=False
    )
    width, activation = f.count("moe_intermediate_size"), f.text("hidden_act", default="silu")
    experts, active = read_experts(f, "n_routed_experts", "num_experts")
    shared = width * f.count("n_shared_experts", default=1)
    norms = pre_norms(hidden_size)
    if f.flag("use_qk_norm", default=False):
        norms = (*norms, *head_norms(attention.head_dim))

    def block(mixes: bool) -> Block:
        if not mixes:
            dense = f.count("intermediate_size")
            mlp, parts = Mlp(intermediate_size=dense, activation=activation), gated_linears(hidden_size, dense)
        else:
            mlp = Mlp(
                intermediate_size=width,
                activation=activation,
                experts=experts,
                experts_per_token=active,
                shared_intermediate_size=shared,
            )
            parts = (
                *expert_linears(hidden_size, width, experts=experts, active=active),
                *gated_linears(hidden_size, shared, path="mlp.shared_experts", shared=True),
            )
        return Block(attention=attention, mlp=mlp, linears=(*attention_parts, *parts), norms=norms)

    first = f.count("first_k_dense_replace", default=1, low=0)
    return decoder(
        f,
        architecture="Glm4MoeForCausalLM",
        layers=layer_groups([i >= first for i in range(layers)], block),
        tied=False,
        max_positions=131072,
    )
