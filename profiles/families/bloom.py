"""BLOOM: ALiBi instead of positions, one qkv matmul, biases everywhere, a norm behind the embedding."""

from profiles.blocks import decoder, multi_head, plain_linears, pre_norms
from profiles.config_reader import ConfigReader
from profiles.model import Block, LayerGroup, Linear, Mlp, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """Pre-norm layers, MLP four times as wide; hub configs name the width n_embed."""
    hidden_size, heads = f.count("n_embed", "hidden_size"), f.count("n_head", "num_attention_heads")
    block = Block(
        attention=multi_head(f, hidden_size, heads, rotary=False, alibi=True, form="bloom"),
        mlp=Mlp(intermediate_size=4 * hidden_size, gated=False, activation="bloom_gelu"),
        linears=(
            Linear(
                name="self_attention.query_key_value",
                role="qkv",
                in_features=hidden_size,
                out_features=3 * hidden_size,
                bias=True,
            ),
            Linear(name="self_attention.dense", role="o", in_features=hidden_size, out_features=hidden_size, bias=True),
            *plain_linears(hidden_size, 4 * hidden_size, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", bias=True),
        ),
        norms=pre_norms(hidden_size, kind="layernorm", bias=True),
    )
    layer_norm = {"size": hidden_size, "kind": "layernorm", "bias": True}
    return decoder(
        f,
        architecture="BloomForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers("n_layer"), block=block),),
        tied=True,
        max_positions=2048,
        hidden_size=hidden_size,
        embedding="transformer.word_embeddings",
        layers_path="transformer.h",
        extra_norms=(
            Norm(name="transformer.word_embeddings_layernorm", place="embedding", **layer_norm),
            Norm(name="transformer.ln_f", place="final", **layer_norm),
        ),
    )
