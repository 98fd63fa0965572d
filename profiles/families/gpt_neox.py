"""GPT-NeoX and Pythia: one qkv matmul, biases everywhere, attention and MLP side by side, a quarter rotated."""

from profiles.blocks import decoder, multi_head, plain_linears, pre_norms
from profiles.config_reader import ConfigReader
from profiles.model import Block, LayerGroup, Linear, Mlp, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """Each part has its own norm of the same residual stream (use_parallel_residual)."""
    hidden_size, heads, width = f.hidden_size, f.count("num_attention_heads"), f.count("intermediate_size")
    bias = f.flag("attention_bias", default=True)
    block = Block(
        attention=multi_head(f, hidden_size, heads, partial_rotary_factor=f.partial_rotary_factor(0.25, "rotary_pct")),
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("hidden_act", default="gelu")),
        linears=(
            Linear(
                name="attention.query_key_value",
                role="qkv",
                in_features=hidden_size,
                out_features=3 * hidden_size,
                bias=bias,
            ),
            Linear(name="attention.dense", role="o", in_features=hidden_size, out_features=hidden_size, bias=bias),
            *plain_linears(hidden_size, width, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", bias=True),
        ),
        norms=pre_norms(hidden_size, kind="layernorm", bias=True),
        parallel=f.flag("use_parallel_residual", default=True),
    )
    return decoder(
        f,
        architecture="GPTNeoXForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers(), block=block),),
        tied=False,
        max_positions=2048,
        norm="gpt_neox.final_layer_norm",
        norm_kind="layernorm",
        norm_bias=True,
        embedding="gpt_neox.embed_in",
        layers_path="gpt_neox.layers",
    )
