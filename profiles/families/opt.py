"""OPT: learned positions (two rows more than said), biases everywhere, plain ReLU MLP."""

from profiles.blocks import attention_linears, decoder, multi_head, plain_linears
from profiles.config_reader import ConfigReader
from profiles.model import Block, Embedding, LayerGroup, Linear, Mlp, ModelSpec, Norm

POSITION_OFFSET = 2  # OPTLearnedPositionalEmbedding


def describe(f: ConfigReader) -> ModelSpec:
    """OPT-350m differs: post-norm, and embeddings narrower than the layers with projections in and out."""
    hidden_size, heads, width = f.hidden_size, f.count("num_attention_heads"), f.count("ffn_dim")
    bias, affine = f.flag("enable_bias", default=True), f.flag("layer_norm_elementwise_affine", default=True)
    before = f.flag("do_layer_norm_before", default=True)
    narrow = f.optional_count("word_embed_proj_dim") or hidden_size
    attention = multi_head(f, hidden_size, heads, rotary=False)

    def norm(name: str, place: str) -> Norm:
        return Norm.model_validate(
            {"name": name, "size": hidden_size, "kind": "layernorm", "bias": affine, "affine": affine, "place": place}
        )

    block = Block(
        attention=attention,
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("activation_function", default="relu")),
        linears=(
            *attention_linears(attention, hidden_size, out="out_proj", bias=bias),
            *plain_linears(hidden_size, width, up="fc1", down="fc2", bias=bias),
        ),
        norms=(
            norm("self_attn_layer_norm", "pre_attention" if before else "post_attention"),
            norm("final_layer_norm", "pre_mlp" if before else "post_mlp"),
        ),
    )
    final = before and not f.flag("_remove_final_layer_norm", default=False)
    positions, vocab_size = f.max_position_embeddings(default=2048), f.count("vocab_size")
    projections: tuple[Linear, ...] = ()
    if narrow != hidden_size:
        projections = (
            Linear(name="model.decoder.project_in", role="dense", in_features=narrow, out_features=hidden_size),
            Linear(name="model.decoder.project_out", role="dense", in_features=hidden_size, out_features=narrow),
        )
    return decoder(
        f,
        architecture="OPTForCausalLM",
        layers=(LayerGroup(count=f.num_hidden_layers(), block=block),),
        tied=True,
        max_positions=2048,
        layers_path="model.decoder.layers",
        extra_norms=(norm("model.decoder.final_layer_norm", "final"),) if final else (),
        extra_linears=projections,
        embeddings=(
            Embedding(name="model.decoder.embed_tokens", rows=vocab_size, width=narrow),
            Embedding(name="model.decoder.embed_positions", rows=positions + POSITION_OFFSET, width=hidden_size),
        ),
        head=Linear(name="lm_head", role="head", in_features=narrow, out_features=vocab_size),
    )
