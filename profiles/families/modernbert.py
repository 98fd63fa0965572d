"""ModernBERT: rotary pre-norm encoder, gated MLP, local attention in two layers of three."""

from profiles.blocks import layer_groups, masked_lm, multi_head
from profiles.config_reader import ConfigReader
from profiles.model import Block, Embedding, Linear, Mlp, ModelSpec, Norm


def describe(f: ConfigReader) -> ModelSpec:
    """With its masked-LM head. The first layer has no attention norm: the embedding's serves it."""
    hidden_size, vocab_size, layers = f.hidden_size, f.count("vocab_size"), f.num_hidden_layers()
    heads, width = f.count("num_attention_heads"), f.count("intermediate_size")
    attention_bias, mlp_bias = f.flag("attention_bias", default=False), f.flag("mlp_bias", default=False)
    norm = Norm(name="mlp_norm", size=hidden_size, kind="layernorm", bias=f.flag("norm_bias", default=False))
    window = f.count("local_attention", default=128)
    linears = (
        Linear(
            name="attn.Wqkv", role="qkv", in_features=hidden_size, out_features=3 * hidden_size, bias=attention_bias
        ),
        Linear(name="attn.Wo", role="o", in_features=hidden_size, out_features=hidden_size, bias=attention_bias),
        Linear(name="mlp.Wi", role="gate_up", in_features=hidden_size, out_features=2 * width, bias=mlp_bias),
        Linear(name="mlp.Wo", role="down", in_features=width, out_features=hidden_size, bias=mlp_bias),
    )
    mlp = Mlp(intermediate_size=width, activation=f.text("hidden_activation", default="gelu"))

    def block(kind: tuple[bool, bool]) -> Block:
        first, slides = kind
        before = () if first else (norm.replace(name="attn_norm", place="pre_attention"),)
        attention = multi_head(f, hidden_size, heads, causal=False, sliding_window=window if slides else None)
        return Block(attention=attention, mlp=mlp, linears=linears, norms=(*before, norm.replace(place="pre_mlp")))

    return masked_lm(
        f,
        architecture="ModernBertForMaskedLM",
        head=Linear(
            name="decoder",
            role="head",
            in_features=hidden_size,
            out_features=vocab_size,
            bias=f.flag("decoder_bias", default=True),
        ),
        max_position_embeddings=f.max_position_embeddings(default=8192),
        embeddings=(Embedding(name="model.embeddings.tok_embeddings", rows=vocab_size, width=hidden_size),),
        layers=layer_groups([(i == 0, slides) for i, slides in enumerate(_local(f, layers))], block),
        extra_linears=(
            Linear(
                name="head.dense",
                role="dense",
                in_features=hidden_size,
                out_features=hidden_size,
                bias=f.flag("classifier_bias", default=False),
            ),
        ),
        extra_norms=(
            norm.replace(name="model.embeddings.norm", place="embedding"),
            norm.replace(name="model.final_norm", place="final"),
            norm.replace(name="head.norm", place="final"),
        ),
    )


def _local(f: ConfigReader, layers: int) -> list[bool]:
    types = f.items("layer_types", str, layers)
    if types is not None:
        return [t == "sliding_attention" for t in types]
    every = f.count("global_attn_every_n_layers", default=3)
    return [i % every != 0 for i in range(layers)]
