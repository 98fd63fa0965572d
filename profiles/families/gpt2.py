"""GPT-2: Conv1D weights (stored transposed), learned positions, tied head."""

from profiles.blocks import decoder, multi_head, plain_linears, pre_norms
from profiles.config_reader import ConfigReader
from profiles.errors import UnsupportedError
from profiles.model import Block, Embedding, LayerGroup, Linear, Mlp, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """Pre-norm layers with biases; n_inner defaults to four times the width."""
    hidden_size, heads = f.count("n_embd", "hidden_size"), f.count("n_head", "num_attention_heads")
    width = f.optional_count("n_inner") or 4 * hidden_size
    positions = f.max_position_embeddings("n_positions", default=1024)
    if f.flag("add_cross_attention", default=False):
        raise UnsupportedError(f"{f.name}: GPT-2 with cross-attention is half of an encoder-decoder")
    block = Block(
        attention=multi_head(f, hidden_size, heads, rotary=False, softmax="own, narrowed"),
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("activation_function", default="gelu_new")),
        linears=(
            Linear(
                name="attn.c_attn",
                role="qkv",
                in_features=hidden_size,
                out_features=3 * hidden_size,
                bias=True,
                kind="conv1d",
            ),
            Linear(
                name="attn.c_proj",
                role="o",
                in_features=hidden_size,
                out_features=hidden_size,
                bias=True,
                kind="conv1d",
            ),
            *plain_linears(hidden_size, width, up="mlp.c_fc", down="mlp.c_proj", bias=True, kind="conv1d"),
        ),
        norms=pre_norms(hidden_size, kind="layernorm", bias=True, attention="ln_1", mlp="ln_2"),
    )
    return decoder(
        f,
        architecture="GPT2LMHeadModel",
        layers=(LayerGroup(count=f.num_hidden_layers("n_layer"), block=block),),
        tied=True,
        max_positions=1024,
        hidden_size=hidden_size,
        norm="transformer.ln_f",
        norm_kind="layernorm",
        norm_bias=True,
        layers_path="transformer.h",
        max_position_embeddings=positions,
        embeddings=(
            Embedding(name="transformer.wte", rows=f.count("vocab_size"), width=hidden_size),
            Embedding(name="transformer.wpe", rows=positions, width=hidden_size),
        ),
    )
