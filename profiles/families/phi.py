"""Phi-1, 1.5 and 2: biases everywhere, one LayerNorm, attention and MLP side by side, half of each head rotated."""

from profiles.blocks import attention_linears, decoder, plain_linears, read_attention
from profiles.config_reader import ConfigReader
from profiles.model import Block, LayerGroup, Mlp, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """Parallel layers with a plain MLP (fc1, fc2); the head has a bias too."""
    hidden_size, width = f.hidden_size, f.count("intermediate_size")
    attention = read_attention(f).replace(partial_rotary_factor=f.partial_rotary_factor(0.5))
    norms = [Norm(name="input_layernorm", size=hidden_size, kind="layernorm", bias=True)]
    if f.flag("qk_layernorm", default=False):
        # One LayerNorm over hidden_size / heads features serves all heads.
        size = f.per_head(hidden_size, attention.num_heads)
        norms += [
            Norm(name="self_attn.q_layernorm", size=size, kind="layernorm", bias=True, place="q", per_head=True),
            Norm(name="self_attn.k_layernorm", size=size, kind="layernorm", bias=True, place="k", per_head=True),
        ]
    block = Block(
        attention=attention,
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("hidden_act", default="gelu_new")),
        linears=(
            *attention_linears(attention, hidden_size, out="dense", bias=True),
            *plain_linears(hidden_size, width, up="mlp.fc1", down="mlp.fc2", bias=True),
        ),
        norms=tuple(norms),
        parallel=True,
    )
    return decoder(
        f,
        architecture="PhiForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers(), block=block),),
        tied=False,
        max_positions=2048,
        norm="model.final_layernorm",
        norm_kind="layernorm",
        norm_bias=True,
        head_bias=True,
    )
