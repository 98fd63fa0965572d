"""Gemma 1, 2 and 3 (text): wide heads, tied head, from the second on norms before and behind each part."""

from typing import NamedTuple

from profiles.blocks import (
    attention_linears,
    decoder,
    gated_linears,
    head_norms,
    layer_groups,
    pre_norms,
    sliding_layers,
)
from profiles.config_reader import ConfigReader
from profiles.model import Attention, Block, Mlp, ModelSpec, Norm


class Generation(NamedTuple):
    """Class and defaults of the transformers 5.23 config class; hub configs of Gemma 3 lean on them."""

    architecture: str
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_positions: int
    full_every: int | None = None
    attention_cap: float | None = None
    final_cap: float | None = None


GENERATIONS = {
    "gemma": Generation("GemmaForCausalLM", 16, 16, 256000, 8192),
    "gemma2": Generation("Gemma2ForCausalLM", 8, 4, 256000, 8192, 2, 50.0, 30.0),
    "gemma3_text": Generation("Gemma3ForCausalLM", 8, 4, 262208, 131072, 6),
}
HEAD_DIM = 256


def describe(f: ConfigReader) -> ModelSpec:
    """Gemma 2 slides in every other layer, Gemma 3 in five of six; Gemma 2 caps scores and logits with tanh."""
    model_type = f.config["model_type"]
    g = GENERATIONS[model_type]
    hidden_size, layers, width = f.hidden_size, f.num_hidden_layers(), f.count("intermediate_size")
    heads = f.count("num_attention_heads", default=g.num_attention_heads)
    kv_heads = f.count("num_key_value_heads", default=g.num_key_value_heads)
    if heads % kv_heads:
        raise f.error("num_key_value_heads", f"{heads} attention heads cannot share {kv_heads} key-value heads")
    head_dim = f.count("head_dim", default=HEAD_DIM)
    attention = Attention(
        num_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        logit_softcap=f.config.get("attn_logit_softcapping", g.attention_cap) is not None,
    )
    linears = (
        *attention_linears(attention, hidden_size, bias=f.flag("attention_bias", default=False)),
        *gated_linears(hidden_size, width),
    )
    norms = pre_norms(hidden_size) if model_type == "gemma" else _sandwich_norms(hidden_size)
    if model_type == "gemma3_text":
        norms = (*norms, *head_norms(head_dim))
    norms = tuple(n.replace(wide=True) for n in norms)
    mlp = Mlp(
        intermediate_size=width, activation=f.text("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    )
    window = f.count("sliding_window", default=4096) if g.full_every else None

    def block(slides: bool) -> Block:
        own = attention.replace(sliding_window=window if slides else None)
        return Block(attention=own, mlp=mlp, linears=linears, norms=norms)

    full_every = f.count("sliding_window_pattern", default=g.full_every) if g.full_every else None
    kinds = sliding_layers(f, layers, full_every=full_every) if g.full_every else [False] * layers
    return decoder(
        f,
        architecture=g.architecture,
        layers=layer_groups(kinds, block),
        tied=True,
        max_positions=g.max_positions,
        norm_wide=True,
        vocab_size=f.count("vocab_size", default=g.vocab_size),
        final_logit_softcap=f.config.get("final_logit_softcapping", g.final_cap) is not None,
    )


def _sandwich_norms(hidden_size: int) -> tuple[Norm, ...]:
    return (
        Norm(name="input_layernorm", size=hidden_size, place="pre_attention"),
        Norm(name="post_attention_layernorm", size=hidden_size, place="post_attention"),
        Norm(name="pre_feedforward_layernorm", size=hidden_size, place="pre_mlp"),
        Norm(name="post_feedforward_layernorm", size=hidden_size, place="post_mlp"),
    )
