"""Pieces that families share: attention shapes, usual matmuls and norms, merging of equal layers, the whole decoder."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from profiles.config_reader import MAX_EXPERTS, ConfigReader
from profiles.model import Attention, Block, Embedding, LayerGroup, Linear, Mlp, ModelSpec, Norm, NormKind

Kind = TypeVar("Kind", bound=Hashable)


def read_attention(f: ConfigReader, *, kv_default: int | None = None, head_dim: int | None = None) -> Attention:
    """Heads of a decoder: `num_attention_heads`, `num_key_value_heads` and `head_dim` under their usual names.

    `kv_default` and `head_dim` are the config class's defaults for a missing key; null means "as many as q" and
    hidden_size / heads.
    """
    heads = f.count("num_attention_heads")
    kv_heads = f.optional_count("num_key_value_heads", kv_default) or heads
    if heads % kv_heads:
        raise f.error("num_key_value_heads", f"{heads} attention heads cannot share {kv_heads} key-value heads")
    width = f.optional_count("head_dim", head_dim) or f.per_head(f.hidden_size, heads)
    return Attention(num_heads=heads, num_key_value_heads=kv_heads, head_dim=width, v_head_dim=width)


def multi_head(f: ConfigReader, hidden_size: int, heads: int, **more: Any) -> Attention:
    """Attention whose heads share hidden_size evenly, each with its own keys; `more`: further fields of Attention."""
    width = f.per_head(hidden_size, heads)
    return Attention(num_heads=heads, num_key_value_heads=heads, head_dim=width, v_head_dim=width, **more)


def attention_linears(
    a: Attention, hidden_size: int, *, path: str = "self_attn", out: str = "o_proj", bias: bool = False,
    out_bias: bool | None = None,
) -> tuple[Linear, ...]:  # fmt: skip
    """q, k, v and output projections; `out_bias` None: as `bias`."""
    kv = a.num_key_value_heads
    return (
        Linear(name=f"{path}.q_proj", role="q", in_features=hidden_size, out_features=a.q_width, bias=bias),
        Linear(name=f"{path}.k_proj", role="k", in_features=hidden_size, out_features=a.kv_width, bias=bias),
        Linear(name=f"{path}.v_proj", role="v", in_features=hidden_size, out_features=kv * a.v_head_dim, bias=bias),
        Linear(
            name=f"{path}.{out}",
            role="o",
            in_features=a.num_heads * a.v_head_dim,
            out_features=hidden_size,
            bias=bias if out_bias is None else out_bias,
        ),
    )


def gated_linears(
    hidden_size: int, width: int, *, path: str = "mlp", bias: bool = False, shared: bool = False
) -> tuple[Linear, ...]:
    """gate, up and down projections of a gated MLP."""
    common: dict[str, Any] = {"bias": bias, "shared_expert": shared}
    return (
        Linear(name=f"{path}.gate_proj", role="gate", in_features=hidden_size, out_features=width, **common),
        Linear(name=f"{path}.up_proj", role="up", in_features=hidden_size, out_features=width, **common),
        Linear(name=f"{path}.down_proj", role="down", in_features=width, out_features=hidden_size, **common),
    )


def fused_gated_linears(hidden_size: int, width: int, *, path: str = "mlp") -> tuple[Linear, ...]:
    """One matmul for gate and up, one for down (Phi-3, GLM)."""
    return (
        Linear(name=f"{path}.gate_up_proj", role="gate_up", in_features=hidden_size, out_features=2 * width),
        Linear(name=f"{path}.down_proj", role="down", in_features=width, out_features=hidden_size),
    )


def plain_linears(hidden_size: int, width: int, *, up: str, down: str, bias: bool, **more: Any) -> tuple[Linear, ...]:
    """Two matmuls with an activation between them, no gate."""
    return (
        Linear(name=up, role="up", in_features=hidden_size, out_features=width, bias=bias, **more),
        Linear(name=down, role="down", in_features=width, out_features=hidden_size, bias=bias, **more),
    )


def expert_linears(
    hidden_size: int, width: int, *, experts: int, active: int, path: str = "mlp", router: str = "gate"
) -> tuple[Linear, ...]:
    """Router and fused experts as transformers 5 holds them: bare parameters, one 3-D tensor for all experts."""
    fused: dict[str, Any] = {"kind": "parameter", "copies": experts, "active": active}
    return (
        Linear(
            name=f"{path}.{router}.weight",
            role="router",
            in_features=hidden_size,
            out_features=experts,
            kind="parameter",
        ),
        Linear(
            name=f"{path}.experts.gate_up_proj",
            role="gate_up",
            in_features=hidden_size,
            out_features=2 * width,
            **fused,
        ),
        Linear(name=f"{path}.experts.down_proj", role="down", in_features=width, out_features=hidden_size, **fused),
    )


def read_experts(f: ConfigReader, *keys: str) -> tuple[int, int]:
    """(experts, experts per token): the count under the first of `keys`, and `num_experts_per_tok` of them."""
    experts, active = f.count(*keys, high=MAX_EXPERTS), f.count("num_experts_per_tok")
    if active > experts:
        raise f.error("num_experts_per_tok", f"{active} of {experts} experts a token cannot be")
    return experts, active


def pre_norms(
    hidden_size: int,
    *,
    kind: NormKind = "rmsnorm",
    bias: bool = False,
    attention: str = "input_layernorm",
    mlp: str = "post_attention_layernorm",
) -> tuple[Norm, ...]:
    """The two norms of a pre-norm layer: one before attention, one before the MLP."""
    return (
        Norm(name=attention, size=hidden_size, kind=kind, bias=bias, place="pre_attention"),
        Norm(name=mlp, size=hidden_size, kind=kind, bias=bias, place="pre_mlp"),
    )


def head_norms(head_dim: int, *, path: str = "self_attn") -> tuple[Norm, ...]:
    """RMS norms over each head of q and k."""
    return (
        Norm(name=f"{path}.q_norm", size=head_dim, place="q", per_head=True),
        Norm(name=f"{path}.k_norm", size=head_dim, place="k", per_head=True),
    )


def layer_groups(kinds: Iterable[Kind], build: Callable[[Kind], Block]) -> tuple[LayerGroup, ...]:
    """Equal layers merged: one group for each different entry of `kinds`, in order of first appearance."""
    return tuple(LayerGroup(count=n, block=build(kind)) for kind, n in Counter(kinds).items())


def sliding_layers(f: ConfigReader, layers: int, *, full_every: int | None) -> list[bool]:
    """For each layer whether it slides: from `layer_types`, else every `full_every`-th is full (None: all full)."""
    types = f.items("layer_types", str, layers)
    if types is not None:
        return [t != "full_attention" for t in types]
    return [full_every is not None and (i + 1) % full_every != 0 for i in range(layers)]


def decoder(
    f: ConfigReader,
    *,
    architecture: str,
    layers: tuple[LayerGroup, ...],
    tied: bool,
    max_positions: int,
    norm: str = "model.norm",
    norm_kind: NormKind = "rmsnorm",
    norm_bias: bool = False,
    norm_affine: bool = True,
    norm_wide: bool = False,
    embedding: str = "model.embed_tokens",
    head_bias: bool = False,
    hidden_size: int | None = None,
    vocab_size: int | None = None,
    **more: Any,
) -> ModelSpec:
    """A causal LM: embedding, layers, final norm, head. `tied` and `max_positions` are the class's defaults.

    `hidden_size` and `vocab_size` are given where the config names them otherwise; `more` are fields of ModelSpec
    that replace the usual ones.
    """
    hidden_size, vocab_size = hidden_size or f.hidden_size, vocab_size or f.count("vocab_size")
    final = Norm(
        name=norm,
        size=hidden_size,
        kind=norm_kind,
        bias=norm_bias,
        affine=norm_affine,
        wide=norm_wide,
        place="final",
    )
    values: dict[str, Any] = {
        "max_position_embeddings": f.max_position_embeddings(default=max_positions),
        "extra_norms": (final,),
        "embeddings": (Embedding(name=embedding, rows=vocab_size, width=hidden_size),),
        "head": Linear(name="lm_head", role="head", in_features=hidden_size, out_features=vocab_size, bias=head_bias),
        **more,
    }
    return ModelSpec(
        name=f.name,
        model_type=f.config["model_type"],
        architecture=architecture,
        kind="causal-lm",
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        tie_word_embeddings=f.flag("tie_word_embeddings", default=tied),
        layers=layers,
        config=f.config,
        **values,
    )


def masked_lm(f: ConfigReader, *, architecture: str, head: Linear, tied: bool = True, **fields: Any) -> ModelSpec:
    """An encoder with its masked-LM head, whose bias is shared with a second tensor while the head is tied."""
    tie = f.flag("tie_word_embeddings", default=tied)
    return ModelSpec(
        name=f.name,
        model_type=f.config["model_type"],
        architecture=architecture,
        kind="encoder",
        hidden_size=head.in_features,
        vocab_size=head.out_features,
        tie_word_embeddings=tie,
        head=head,
        config=f.config,
        **fields,
    )


def gated_mlp(f: ConfigReader, *, activation: str = "silu", key: str = "hidden_act") -> Mlp:
    """A dense gated MLP of `intermediate_size`."""
    return Mlp(intermediate_size=f.count("intermediate_size"), activation=f.text(key, default=activation))
