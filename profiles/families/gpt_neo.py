"""GPT-Neo: GPT-2's layer with plain linears, every other layer attending in a window."""

from profiles.blocks import attention_linears, decoder, layer_groups, multi_head, plain_linears, pre_norms
from profiles.config_reader import ConfigReader
from profiles.model import Block, Embedding, Mlp, ModelSpec


def describe(f: ConfigReader) -> ModelSpec:
    """q, k and v have no bias, the output projection has one; learned positions, tied head; a causal mask of all
    positions, a byte each, in every layer (GPTNeoSelfAttention.bias)."""
    hidden_size, heads = f.hidden_size, f.count("num_heads", "num_attention_heads")
    width = f.optional_count("intermediate_size") or 4 * hidden_size
    positions, window = f.max_position_embeddings(default=2048), f.count("window_size", default=256)
    attention = multi_head(f, hidden_size, heads, rotary=False, form="gpt_neo")

    def block(local: bool) -> Block:
        return Block(
            attention=attention.replace(sliding_window=window if local else None),
            mlp=Mlp(intermediate_size=width, gated=False, activation=f.text("activation_function", default="gelu_new")),
            linears=(
                *attention_linears(attention, hidden_size, path="attn.attention", out="out_proj", out_bias=True),
                *plain_linears(hidden_size, width, up="mlp.c_fc", down="mlp.c_proj", bias=True),
            ),
            norms=pre_norms(hidden_size, kind="layernorm", bias=True, attention="ln_1", mlp="ln_2"),
            buffer_bytes=positions**2,
        )

    return decoder(
        f,
        architecture="GPTNeoForCausalLM",
        layers=layer_groups(_local(f, f.num_hidden_layers("num_layers")), block),
        tied=True,
        max_positions=2048,
        norm="transformer.ln_f",
        norm_kind="layernorm",
        norm_bias=True,
        layers_path="transformer.h",
        embeddings=(
            Embedding(name="transformer.wte", rows=f.count("vocab_size"), width=hidden_size),
            Embedding(name="transformer.wpe", rows=positions, width=hidden_size),
        ),
    )


def _local(f: ConfigReader, layers: int) -> list[bool]:
    """`attention_types` as hub configs have it: [[["global", "local"], 12]]."""
    local: list[bool] = []
    for entry in f.items("attention_types", list) or [[["global", "local"], (layers + 1) // 2]]:
        match entry:
            case [[*kinds], int(times)] if set(map(repr, kinds)) <= {"'global'", "'local'"} and 0 < times <= layers:
                local += [kind == "local" for kind in kinds] * times
            case _:
                raise f.error("attention_types", "must be like [[['global', 'local'], 12]]")
    if "attention_types" in f.config and len(local) != layers:
        raise f.error("attention_types", f"has {len(local)} entries for {layers} layers")
    return local[:layers]
