"""Falcon (the 2023 models): one key-value head or groups of them in one qkv matmul; Falcon 3 is a llama."""

from profiles.blocks import decoder, plain_linears
from profiles.config_reader import ConfigReader
from profiles.model import Attention, Block, LayerGroup, Linear, Mlp, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """The 7B has multi-query attention and one norm; 40B and 180B (new_decoder_architecture) groups and two."""
    hidden_size = f.count("hidden_size", "n_embed")
    heads = f.count("num_attention_heads", "n_head")
    new, bias = f.flag("new_decoder_architecture", default=False), f.flag("bias", default=False)
    parallel = f.flag("parallel_attn", default=True)
    alibi = f.flag("alibi", default=False)
    head_dim = f.per_head(hidden_size, heads)
    kv_heads = (f.optional_count("num_kv_heads") or heads) if new else heads
    if not new and f.flag("multi_query", default=True):
        kv_heads = 1
    if heads % kv_heads:
        raise f.error("num_kv_heads", f"{heads} attention heads cannot share {kv_heads} key-value heads")
    width = f.optional_count("ffn_hidden_size") or 4 * hidden_size
    attention = Attention(
        num_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        rotary=not alibi,
        alibi=alibi,
        softmax="own, narrowed",
        form="falcon",
    )
    qkv = attention.q_width + 2 * attention.kv_width
    linears = (
        Linear(name="self_attention.query_key_value", role="qkv", in_features=hidden_size, out_features=qkv, bias=bias),
        Linear(name="self_attention.dense", role="o", in_features=hidden_size, out_features=hidden_size, bias=bias),
        *plain_linears(hidden_size, width, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", bias=bias),
    )
    block = Block(
        attention=attention,
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("activation", default="gelu")),
        linears=tuple(x.replace(kind="subclass") for x in linears),  # FalconLinear
        norms=_norms(f, hidden_size, new, parallel),
        parallel=parallel,
    )
    return decoder(
        f,
        architecture="FalconForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers("n_layer"), block=block),),
        tied=True,
        max_positions=2048,
        hidden_size=hidden_size,
        norm="transformer.ln_f",
        norm_kind="layernorm",
        norm_bias=True,
        embedding="transformer.word_embeddings",
        layers_path="transformer.h",
    )


def _norms(f: ConfigReader, hidden_size: int, new: bool, parallel: bool) -> tuple[Norm, ...]:
    two = f.optional_count("num_ln_in_parallel_attn") == 2 or (
        new and f.optional_count("num_ln_in_parallel_attn") is None
    )
    names = ["input_layernorm"] if not (parallel and two) else ["ln_attn", "ln_mlp"]
    if not parallel:
        names.append("post_attention_layernorm")
    first = Norm(name=names[0], size=hidden_size, kind="layernorm", bias=True, place="pre_attention")
    return (first, *(first.replace(name=n, place="pre_mlp") for n in names[1:]))
