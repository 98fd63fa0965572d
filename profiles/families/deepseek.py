"""DeepSeek V2 and V3 (R1): latent attention (MLA), dense first layers, then experts with shared ones beside them."""

from profiles.blocks import decoder, expert_linears, gated_linears, layer_groups, pre_norms, read_experts
from profiles.config_reader import ConfigReader
from profiles.model import Attention, Block, Linear, Mlp, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """The router's correction bias of V3 is a buffer, and its multi-token-prediction layers are not loaded."""
    third, hidden_size, layers = f.config["model_type"] == "deepseek_v3", f.hidden_size, f.num_hidden_layers()
    attention, attention_parts, attention_norms = _latent_attention(f, hidden_size)
    width, activation = f.count("moe_intermediate_size"), f.text("hidden_act", default="silu")
    experts, active = read_experts(f, "n_routed_experts")
    shared = width * f.count("n_shared_experts", default=1 if third else 2)
    mlp_bias = not third and f.flag("mlp_bias", default=False)
    norms = (*pre_norms(hidden_size), *attention_norms)

    def block(mixes: bool) -> Block:
        if not mixes:
            dense = f.count("intermediate_size")
            mlp = Mlp(intermediate_size=dense, activation=activation)
            parts = gated_linears(hidden_size, dense, bias=mlp_bias)
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
                *gated_linears(hidden_size, shared, path="mlp.shared_experts", bias=mlp_bias, shared=True),
            )
        return Block(attention=attention, mlp=mlp, linears=(*attention_parts, *parts), norms=norms)

    first = f.count("first_k_dense_replace", default=3 if third else 0, low=0)
    return decoder(
        f,
        architecture="DeepseekV3ForCausalLM" if third else "DeepseekV2ForCausalLM",
        layers=layer_groups([i >= first for i in range(layers)], block),
        tied=False,
        max_positions=4096 if third else 2048,
    )


def _latent_attention(f: ConfigReader, hidden_size: int) -> tuple[Attention, tuple[Linear, ...], tuple[Norm, ...]]:
    heads, bias = f.count("num_attention_heads"), f.flag("attention_bias", default=False)
    rope, nope = f.count("qk_rope_head_dim", default=64), f.count("qk_nope_head_dim", default=128)
    value, rank = f.count("v_head_dim", default=128), f.count("kv_lora_rank", default=512)
    q_rank = f.optional_count("q_lora_rank", 1536)
    attention = Attention(
        num_heads=heads,
        num_key_value_heads=heads,
        head_dim=nope + rope,
        v_head_dim=value,
        partial_rotary_factor=rope / (nope + rope),
        kind="mla",
    )
    path, q_width = "self_attn", attention.q_width
    norms = [Norm(name=f"{path}.kv_a_layernorm", size=rank, place="kv_a")]
    if q_rank is None:
        queries = [Linear(name=f"{path}.q_proj", role="q", in_features=hidden_size, out_features=q_width)]
    else:
        norms.insert(0, Norm(name=f"{path}.q_a_layernorm", size=q_rank, place="q_a"))
        queries = [
            Linear(name=f"{path}.q_a_proj", role="q_a", in_features=hidden_size, out_features=q_rank, bias=bias),
            Linear(name=f"{path}.q_b_proj", role="q_b", in_features=q_rank, out_features=q_width),
        ]
    linears = (
        *queries,
        Linear(
            name=f"{path}.kv_a_proj_with_mqa",
            role="kv_a",
            in_features=hidden_size,
            out_features=rank + rope,
            bias=bias,
        ),
        Linear(name=f"{path}.kv_b_proj", role="kv_b", in_features=rank, out_features=heads * (nope + value)),
        Linear(name=f"{path}.o_proj", role="o", in_features=heads * value, out_features=hidden_size, bias=bias),
    )
    return attention, linears, tuple(norms)
