"""StableLM 2 and 3B: Llama's matmuls with LayerNorm, a quarter of each head rotated."""

from profiles.blocks import attention_linears, decoder, gated_linears, gated_mlp, pre_norms, read_attention
from profiles.config_reader import ConfigReader
from profiles.errors import UnsupportedError
from profiles.model import Block, LayerGroup, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """With use_parallel_residual (12B) one norm serves both parts; the 12B's norm of every head is not described."""
    if f.flag("qk_layernorm", default=False):
        raise UnsupportedError(f"{f.name}: StableLM with qk_layernorm (one norm for each head) is not described")
    hidden_size, parallel = f.hidden_size, f.flag("use_parallel_residual", default=False)
    attention = read_attention(f, kv_default=32).replace(partial_rotary_factor=f.partial_rotary_factor(0.25))
    block = Block(
        attention=attention,
        mlp=gated_mlp(f),
        linears=(
            *attention_linears(attention, hidden_size, bias=f.flag("use_qkv_bias", default=False), out_bias=False),
            *gated_linears(hidden_size, f.count("intermediate_size")),
        ),
        norms=pre_norms(hidden_size, kind="layernorm", bias=True)[: 1 if parallel else 2],
        parallel=parallel,
    )
    return decoder(
        f,
        architecture="StableLmForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers(), block=block),),
        tied=False,
        max_positions=4096,
        norm_kind="layernorm",
        norm_bias=True,
    )
