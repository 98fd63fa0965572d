"""DistilBERT: BERT's layer under names of its own, no token types."""

from typing import Any

from profiles.blocks import masked_lm, multi_head, plain_linears
from profiles.config_reader import ConfigReader
from profiles.model import Block, Embedding, LayerGroup, Linear, Mlp, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """With its masked-LM head; config.json says dim, n_layers, n_heads, hidden_dim."""
    hidden_size, heads = f.count("dim", "hidden_size"), f.count("n_heads", "num_attention_heads")
    width, vocab_size = f.count("hidden_dim"), f.count("vocab_size")
    positions = f.max_position_embeddings(default=512)
    square: dict[str, Any] = {"in_features": hidden_size, "out_features": hidden_size, "bias": True}
    layer_norm: dict[str, Any] = {"size": hidden_size, "kind": "layernorm", "bias": True}
    block = Block(
        attention=multi_head(f, hidden_size, heads, rotary=False, causal=False, softmax="own"),
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("activation", default="gelu")),
        linears=(
            Linear(name="attention.q_lin", role="q", **square),
            Linear(name="attention.k_lin", role="k", **square),
            Linear(name="attention.v_lin", role="v", **square),
            Linear(name="attention.out_lin", role="o", **square),
            *plain_linears(hidden_size, width, up="ffn.lin1", down="ffn.lin2", bias=True),
        ),
        norms=(
            Norm(name="sa_layer_norm", place="post_attention", **layer_norm),
            Norm(name="output_layer_norm", place="post_mlp", **layer_norm),
        ),
    )
    root = "distilbert.embeddings"
    return masked_lm(
        f,
        architecture="DistilBertForMaskedLM",
        head=Linear(name="vocab_projector", role="head", in_features=hidden_size, out_features=vocab_size, bias=True),
        max_position_embeddings=positions,
        embeddings=(
            Embedding(name=f"{root}.word_embeddings", rows=vocab_size, width=hidden_size),
            Embedding(name=f"{root}.position_embeddings", rows=positions, width=hidden_size),
        ),
        layers=(LayerGroup(count=f.num_hidden_layers("n_layers"), block=block),),
        layers_path="distilbert.transformer.layer",
        extra_linears=(Linear(name="vocab_transform", role="dense", **square),),
        extra_norms=(
            Norm(name=f"{root}.LayerNorm", place="embedding", **layer_norm),
            Norm(name="vocab_layer_norm", place="final", **layer_norm),
        ),
    )
