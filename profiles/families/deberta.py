"""DeBERTa v2 and v3: BERT's layer with relative positions, whose table is shared by all layers."""

from profiles.blocks import masked_lm
from profiles.config_reader import ConfigReader
from profiles.errors import UnsupportedError
from profiles.families.bert import encoder_block
from profiles.model import Block, Embedding, LayerGroup, Linear, ModelSpec, Norm

QKV = {
    "attention.self.query": "attention.self.query_proj",
    "attention.self.key": "attention.self.key_proj",
    "attention.self.value": "attention.self.value_proj",
}


def describe(f: ConfigReader) -> ModelSpec:
    """With its (legacy) masked-LM head. The convolution of the v2-xlarge models is not described."""
    hidden_size, vocab_size = f.hidden_size, f.count("vocab_size")
    if f.count("conv_kernel_size", default=0, low=0) or not f.flag("legacy", default=True):
        raise UnsupportedError(f"{f.name}: DeBERTa with a convolution or the new head is not described")
    if f.count("embedding_size", default=hidden_size) != hidden_size:
        raise UnsupportedError(f"{f.name}: DeBERTa with embeddings narrower than its layers is not described")
    relative = f.flag("relative_attention", default=False)
    positions = f.max_position_embeddings(default=512)
    layer_norm = {"size": hidden_size, "kind": "layernorm", "bias": True}
    norms = [Norm(name="deberta.embeddings.LayerNorm", place="embedding", **layer_norm)]
    if "layer_norm" in f.text("norm_rel_ebd", default="none").lower().split("|"):
        norms.append(Norm(name="deberta.encoder.LayerNorm", place="embedding", **layer_norm))
    norms.append(Norm(name="cls.predictions.transform.LayerNorm", place="final", **layer_norm))

    tables = {"deberta.embeddings.word_embeddings": vocab_size}
    if f.flag("position_biased_input", default=True):
        tables["deberta.embeddings.position_embeddings"] = positions
    if types := f.count("type_vocab_size", default=0, low=0):
        tables["deberta.embeddings.token_type_embeddings"] = types
    if relative:
        tables["deberta.encoder.rel_embeddings"] = 2 * _relative_positions(f, positions)
    transform = "cls.predictions.transform.dense"
    return masked_lm(
        f,
        architecture="DebertaV2ForMaskedLM",
        head=Linear(
            name="cls.predictions.decoder", role="head", in_features=hidden_size, out_features=vocab_size, bias=True
        ),
        max_position_embeddings=positions,
        embeddings=tuple(Embedding(name=name, rows=rows, width=hidden_size) for name, rows in tables.items()),
        layers=(LayerGroup(count=f.num_hidden_layers(), block=_block(f, hidden_size, relative)),),
        layers_path="deberta.encoder.layer",
        extra_linears=(
            Linear(name=transform, role="dense", in_features=hidden_size, out_features=hidden_size, bias=True),
        ),
        extra_norms=tuple(norms),
    )


def _relative_positions(f: ConfigReader, positions: int) -> int:
    for key in ("position_buckets", "max_relative_positions"):
        if (value := f.count(key, default=-1, low=-1)) > 0:
            return value
    return positions


def _attention_types(f: ConfigReader) -> list[str]:
    """`pos_att_type`: 'p2c|c2p' or a list."""
    if isinstance(f.config.get("pos_att_type"), str):
        return [kind.strip() for kind in f.text("pos_att_type", default="").lower().split("|")]
    return f.items("pos_att_type", str) or []


def _block(f: ConfigReader, hidden_size: int, relative: bool) -> Block:
    block = encoder_block(f, hidden_size)
    linears = tuple(x.replace(name=QKV.get(x.name, x.name)) for x in block.linears)
    if relative and not f.flag("share_att_key", default=False):
        kinds = _attention_types(f)
        for kind, name in (("c2p", "pos_key_proj"), ("p2c", "pos_query_proj")):
            if kind in kinds:
                extra = Linear(
                    name=f"attention.self.{name}",
                    role="dense",
                    in_features=hidden_size,
                    out_features=hidden_size,
                    bias=True,
                )
                linears = (*linears, extra)
    return block.replace(linears=linears)
