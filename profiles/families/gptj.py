"""GPT-J: attention without biases beside a plain MLP with them, one LayerNorm for both, a head with a bias."""

from profiles.blocks import attention_linears, decoder, multi_head, plain_linears
from profiles.config_reader import ConfigReader
from profiles.model import Block, LayerGroup, Mlp, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """Parallel layers; rotary_dim features of each head are rotated."""
    hidden_size, heads = f.count("n_embd", "hidden_size"), f.count("n_head", "num_attention_heads")
    width = f.optional_count("n_inner") or 4 * hidden_size
    attention = multi_head(f, hidden_size, heads, form="gptj")
    rotary = f.optional_count("rotary_dim", 64)
    if rotary is not None and rotary > attention.head_dim:
        raise f.error("rotary_dim", f"{rotary} is more than the {attention.head_dim} features of a head")
    if rotary is not None:
        attention = attention.replace(partial_rotary_factor=rotary / attention.head_dim)
    block = Block(
        attention=attention,
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("activation_function", default="gelu_new")),
        linears=(
            *attention_linears(attention, hidden_size, path="attn", out="out_proj"),
            *plain_linears(hidden_size, width, up="mlp.fc_in", down="mlp.fc_out", bias=True),
        ),
        norms=(Norm(name="ln_1", size=hidden_size, kind="layernorm", bias=True),),
        parallel=True,
    )
    return decoder(
        f,
        architecture="GPTJForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers("n_layer"), block=block),),
        tied=False,
        max_positions=2048,
        hidden_size=hidden_size,
        max_position_embeddings=f.max_position_embeddings("n_positions", default=2048),
        norm="transformer.ln_f",
        norm_kind="layernorm",
        norm_bias=True,
        embedding="transformer.wte",
        head_bias=True,
        layers_path="transformer.h",
    )
