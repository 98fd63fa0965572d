"""StarCoder2: Llama's attention with LayerNorm, a plain MLP and biases everywhere, tied head."""

from profiles.blocks import attention_linears, decoder, plain_linears, pre_norms, read_attention
from profiles.config_reader import ConfigReader
from profiles.model import Block, LayerGroup, Mlp, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """Pre-norm layers; a set sliding_window serves every layer."""
    hidden_size, width, bias = f.hidden_size, f.count("intermediate_size"), f.flag("use_bias", default=True)
    attention = read_attention(f, kv_default=2).replace(sliding_window=f.optional_count("sliding_window"))
    block = Block(
        attention=attention,
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("hidden_act", default="gelu_pytorch_tanh")),
        linears=(
            *attention_linears(attention, hidden_size, bias=bias),
            *plain_linears(hidden_size, width, up="mlp.c_fc", down="mlp.c_proj", bias=bias),
        ),
        norms=pre_norms(hidden_size, kind="layernorm", bias=True),
    )
    return decoder(
        f,
        architecture="Starcoder2ForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers(), block=block),),
        tied=True,
        max_positions=4096,
        norm_kind="layernorm",
        norm_bias=True,
    )
