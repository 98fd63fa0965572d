"""BERT, RoBERTa, XLM-RoBERTa: post-norm encoders with learned positions, described with their masked-LM head."""

from profiles.blocks import masked_lm, multi_head, plain_linears
from profiles.config_reader import MAX_POSITIONS, ConfigReader
from profiles.model import Block, Embedding, LayerGroup, Linear, Mlp, ModelSpec, Norm

ARCHITECTURES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
}
ROBERTA_OFFSET = 2  # positions are counted from padding_idx + 1


def describe(f: ConfigReader) -> ModelSpec:
    """RoBERTa's table has two rows more than it has positions."""
    model_type, hidden_size = f.config["model_type"], f.hidden_size
    bert = model_type == "bert"
    rows = f.max_position_embeddings(default=512)
    positions = rows if bert else rows - ROBERTA_OFFSET
    if not 1 <= positions <= MAX_POSITIONS:
        raise f.error("max_position_embeddings", f"{rows} leaves no position")
    root = "bert" if bert else "roberta"
    dense, norm, decoder = (
        ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder")
        if bert
        else ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")
    )
    vocab_size = f.count("vocab_size")

    def table(name: str, n: int) -> Embedding:
        return Embedding(name=f"{root}.embeddings.{name}_embeddings", rows=n, width=hidden_size)

    layer_norm = {"size": hidden_size, "kind": "layernorm", "bias": True}
    return masked_lm(
        f,
        architecture=ARCHITECTURES[model_type],
        head=Linear(name=decoder, role="head", in_features=hidden_size, out_features=vocab_size, bias=True),
        max_position_embeddings=positions,
        embeddings=(
            table("word", vocab_size),
            table("position", rows),
            table("token_type", f.count("type_vocab_size", default=2)),
        ),
        layers=(LayerGroup(count=f.num_hidden_layers(), block=encoder_block(f, hidden_size)),),
        layers_path=f"{root}.encoder.layer",
        extra_linears=(Linear(name=dense, role="dense", in_features=hidden_size, out_features=hidden_size, bias=True),),
        extra_norms=(
            Norm(name=f"{root}.embeddings.LayerNorm", place="embedding", **layer_norm),
            Norm(name=norm, place="final", **layer_norm),
        ),
    )


def encoder_block(f: ConfigReader, hidden_size: int) -> Block:
    """One layer: attention, norm, plain MLP, norm."""
    heads, width = f.count("num_attention_heads"), f.count("intermediate_size")

    def dense(name: str, role: str) -> Linear:
        return Linear.model_validate(
            {"name": name, "role": role, "in_features": hidden_size, "out_features": hidden_size, "bias": True}
        )

    layer_norm = {"size": hidden_size, "kind": "layernorm", "bias": True}
    return Block(
        attention=multi_head(f, hidden_size, heads, rotary=False, causal=False, softmax="own"),
        mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("hidden_act", default="gelu")),
        linears=(
            dense("attention.self.query", "q"),
            dense("attention.self.key", "k"),
            dense("attention.self.value", "v"),
            dense("attention.output.dense", "o"),
            *plain_linears(hidden_size, width, up="intermediate.dense", down="output.dense", bias=True),
        ),
        norms=(
            Norm(name="attention.output.LayerNorm", place="post_attention", **layer_norm),
            Norm(name="output.LayerNorm", place="post_mlp", **layer_norm),
        ),
    )
