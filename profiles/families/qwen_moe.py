"""Qwen2-MoE and Qwen3-MoE: many small experts; the former also a shared expert behind a gate of its own."""

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
from profiles.model import Block, Linear, Mlp, ModelSpec

ARCHITECTURES = {"qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}


def describe(f: ConfigReader) -> ModelSpec:
    """Which layers are mixtures: decoder_sparse_step, but for mlp_only_layers."""
    model_type, hidden_size, layers = f.config["model_type"], f.hidden_size, f.num_hidden_layers()
    shares = model_type == "qwen2_moe"
    attention = read_attention(f, kv_default=16 if shares else 4)
    if shares:
        bias, out_bias = f.flag("qkv_bias", default=True), False
    else:
        bias = out_bias = f.flag("attention_bias", default=False)
    attention_parts = attention_linears(attention, hidden_size, bias=bias, out_bias=out_bias)
    norms = (*pre_norms(hidden_size), *(() if shares else head_norms(attention.head_dim)))
    experts, active = read_experts(f, "num_experts", "num_local_experts")
    width, activation = f.count("moe_intermediate_size"), f.text("hidden_act", default="silu")
    shared = f.count("shared_expert_intermediate_size") if shares else 0
    window = f.optional_count("sliding_window") if f.flag("use_sliding_window", default=False) else None
    first_sliding = f.count("max_window_layers", default=28, low=0) if shares else 0
    step, dense = f.count("decoder_sparse_step", default=1), f.items("mlp_only_layers", int) or []

    gate = Linear(name="mlp.shared_expert_gate", role="shared_gate", in_features=hidden_size, out_features=1)

    def block(kind: tuple[bool, bool]) -> Block:
        mixes, slides = kind
        own = attention.replace(sliding_window=window if slides else None)
        if not mixes:
            dense_width = f.count("intermediate_size")
            mlp = Mlp(intermediate_size=dense_width, activation=activation)
            parts = gated_linears(hidden_size, dense_width)
        else:
            mlp = Mlp(
                intermediate_size=width,
                activation=activation,
                experts=experts,
                experts_per_token=active,
                shared_intermediate_size=shared,
            )
            parts = expert_linears(hidden_size, width, experts=experts, active=active)
            if shared:
                parts = (*parts, *gated_linears(hidden_size, shared, path="mlp.shared_expert", shared=True), gate)
        return Block(attention=own, mlp=mlp, linears=(*attention_parts, *parts), norms=norms)

    kinds = [(i not in dense and (i + 1) % step == 0, window is not None and i >= first_sliding) for i in range(layers)]
    return decoder(
        f,
        architecture=ARCHITECTURES[model_type],
        layers=layer_groups(kinds, block),
        tied=False,
        max_positions=32768,
    )
