"""Llama 4 (text): chunked attention, layers without rotation, one of many experts plus a shared one."""

from profiles.blocks import (
    attention_linears,
    decoder,
    expert_linears,
    gated_linears,
    layer_groups,
    pre_norms,
    read_attention,
    read_experts,
)
from profiles.config_reader import ConfigReader
from profiles.model import Block, Mlp, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """moe_layers (or every interleave_moe_layer_step-th) are mixtures; the router is a class derived from nn.Linear.

    Rotating layers attend in chunks of attention_chunk_size, recorded as their sliding window.
    """
    hidden_size, layers = f.hidden_size, f.num_hidden_layers()
    attention = read_attention(f, kv_default=8, head_dim=128)
    width, dense_width = f.count("intermediate_size"), f.count("intermediate_size_mlp", default=16384)
    experts, active = read_experts(f, "num_local_experts")
    router, *fused = expert_linears(
        hidden_size, width, experts=experts, active=active, path="feed_forward", router="router"
    )
    mixture = (
        router.replace(name="feed_forward.router", kind="subclass"),
        *fused,
        *gated_linears(hidden_size, width, path="feed_forward.shared_expert", shared=True),
    )
    attention_parts = attention_linears(attention, hidden_size, bias=f.flag("attention_bias", default=False))
    chunk, activation = f.optional_count("attention_chunk_size", 8192), f.text("hidden_act", default="silu")
    norms_of_heads = f.flag("use_qk_norm", default=True)

    def block(kind: tuple[bool, bool]) -> Block:
        mixes, rotates = kind
        norms = pre_norms(hidden_size)
        if norms_of_heads and rotates:
            q = Norm(name="self_attn.qk_norm", size=attention.head_dim, place="q", per_head=True, affine=False)
            norms = (*norms, q, q.replace(place="k"))
        if mixes:
            mlp = Mlp(
                intermediate_size=width,
                activation=activation,
                experts=experts,
                experts_per_token=active,
                shared_intermediate_size=width,
            )
        else:
            mlp = Mlp(intermediate_size=dense_width, activation=activation)
        parts = mixture if mixes else gated_linears(hidden_size, dense_width, path="feed_forward")
        own = attention.replace(rotary=rotates, sliding_window=chunk if rotates else None)
        return Block(attention=own, mlp=mlp, linears=(*attention_parts, *parts), norms=norms)

    return decoder(
        f,
        architecture="Llama4ForCausalLM",
        layers=layer_groups(zip(_mixtures(f, layers), _rotating(f, layers), strict=True), block),
        tied=False,
        max_positions=131072,
    )


def _mixtures(f: ConfigReader, layers: int) -> list[bool]:
    step = f.count("interleave_moe_layer_step", default=1)
    listed = f.items("moe_layers", int)
    return [i in listed if listed is not None else (i + 1) % step == 0 for i in range(layers)]


def _rotating(f: ConfigReader, layers: int) -> list[bool]:
    interval = f.count("no_rope_layer_interval", default=4)
    # An empty list is what hub configs write for "the default".
    rotates = f.items("no_rope_layers", int, layers if f.config.get("no_rope_layers") else None)
    return [bool(x) for x in rotates] if rotates else [(i + 1) % interval != 0 for i in range(layers)]
