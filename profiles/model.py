"""ModelSpec: a model's shapes, module by module, as the transformers class would build them.

Names are those of config.json and of the real modules, so that PEFT's `target_modules` mean the same here as there.
`profiles/families/` turns a config.json into this record; nothing here knows any architecture.
"""

from functools import cached_property
from typing import Any, Literal

from pydantic import Field, PositiveInt

from profiles.record import Record

StoredType = Literal["bf16", "fp16", "fp32"]
NormKind = Literal["rmsnorm", "layernorm"]
LinearKind = Literal["linear", "conv1d", "parameter", "subclass"]
AttentionForm = Literal["usual", "gptj", "gpt_neo", "bloom", "falcon"]
Outputs = Literal["attention", "mlp"]
STORED: dict[str, StoredType] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Linear(Record):
    """One matmul weight of shape (out_features, in_features), `copies` times (experts).

    `name` is the path inside its layer (`self_attn.q_proj`), or the whole path when it stands outside the layers
    (`lm_head`). kind "parameter" is a bare tensor (fused experts, routers), `name` then being the parameter's path:
    PEFT's target_modules and bitsandbytes do not see it. kind "subclass" is a class derived from nn.Linear, which PEFT
    takes and transformers 5 does not quantise. `active` is how many of the copies a token passes through.
    """

    name: str
    role: Literal[
        "q",
        "k",
        "v",
        "o",
        "qkv",
        "kv_a",
        "kv_b",
        "q_a",
        "q_b",
        "gate",
        "up",
        "gate_up",
        "down",
        "router",
        "shared_gate",
        "head",
        "dense",
    ]
    in_features: PositiveInt
    out_features: PositiveInt
    bias: bool = False
    kind: LinearKind = "linear"
    copies: PositiveInt = 1
    active: PositiveInt = 1
    shared_expert: bool = False

    @property
    def weight_parameters(self) -> int:
        """Weight elements of all copies."""
        return self.in_features * self.out_features * self.copies

    @property
    def bias_parameters(self) -> int:
        """Bias elements of all copies."""
        return self.out_features * self.copies if self.bias else 0


class Norm(Record):
    """A normalisation layer over `size` features. `place` says where it stands in the block.

    `per_head`: one vector of `size` = head_dim serves every head. `affine` False: no weight and no bias at all.
    `wide`: the weight multiplies in fp32, before the result is cast back; a wide LayerNorm is written out in Python.
    """

    name: str
    size: PositiveInt
    kind: NormKind = "rmsnorm"
    bias: bool = False
    place: Literal[
        "pre_attention", "post_attention", "pre_mlp", "post_mlp", "q", "k", "q_a", "kv_a", "final", "embedding"
    ] = "pre_attention"
    per_head: bool = False
    affine: bool = True
    wide: bool = False

    @property
    def parameters(self) -> int:
        """Weight and bias elements."""
        return self.size * (self.affine + self.bias)


class Attention(Record):
    """Attention shapes. `head_dim` is the width of q and k; `v_head_dim` that of v (they differ under MLA).

    `softmax`, of code that writes attention out: in fp32 and narrowed to the queries' dtype, or in the scores' own and
    then narrowed (GPT-2) or not (BERT). `form`: the family whose class writes attention out in its own way, and returns
    the weights with the layer's output.
    """

    num_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    v_head_dim: PositiveInt
    rotary: bool = True
    partial_rotary_factor: float = 1.0  # share of head_dim that is rotated
    alibi: bool = False
    causal: bool = True
    sliding_window: PositiveInt | None = None
    logit_softcap: bool = False
    sinks: bool = False
    dropout: bool = False  # of the probabilities, by the model's own config
    softmax: Literal["fp32", "own, narrowed", "own"] = "fp32"
    form: AttentionForm = "usual"
    kind: Literal["standard", "mla"] = "standard"

    @property
    def q_width(self) -> int:
        """num_heads * head_dim."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """num_key_value_heads * head_dim."""
        return self.num_key_value_heads * self.head_dim


class Mlp(Record):
    """Feed-forward shapes. `gated`: act(gate) * up. Mixture: `experts` > 0, `experts_per_token` of them active."""

    intermediate_size: PositiveInt
    gated: bool = True
    activation: str = "silu"
    experts: int = Field(0, ge=0)
    experts_per_token: int = Field(0, ge=0)
    shared_intermediate_size: int = Field(0, ge=0)


class Block(Record):
    """One transformer layer: its matmul weights in forward order, norms, and what else it holds."""

    attention: Attention
    mlp: Mlp
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    parallel: bool = False  # attention and MLP read the same normed input (Falcon, GPT-NeoX, Phi)
    dropout: tuple[Outputs, ...] = ()  # whose outputs the model's own dropout goes over
    other_parameters: int = Field(0, ge=0)  # sinks, router corrections, scales: trained by full fine-tuning only
    buffer_bytes: int = Field(0, ge=0)  # large constants that stand beside the weights and are no parameters

    @cached_property
    def parameters(self) -> int:
        """All parameters of one such layer."""
        return (
            sum(x.weight_parameters + x.bias_parameters for x in self.linears)
            + sum(n.parameters for n in self.norms)
            + self.other_parameters
        )


class LayerGroup(Record):
    """`count` equal layers."""

    count: PositiveInt
    block: Block


class Embedding(Record):
    """A lookup table (rows, width)."""

    name: str
    rows: PositiveInt
    width: PositiveInt

    @property
    def parameters(self) -> int:
        """rows * width."""
        return self.rows * self.width


class ModelSpec(Record):
    """Everything that the estimators need to know of a model. `config` is the config.json it came from."""

    name: str
    model_type: str
    architecture: str
    kind: Literal["causal-lm", "encoder", "encoder-decoder"]
    hidden_size: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    tie_word_embeddings: bool
    embeddings: tuple[Embedding, ...]
    layers: tuple[LayerGroup, ...]
    layers_path: str = "model.layers"  # a linear's whole name is `{layers_path}.{i}.{name}`
    extra_linears: tuple[Linear, ...] = ()  # outside the layers: projections, poolers, an encoder's head transform
    extra_norms: tuple[Norm, ...] = ()  # embedding norm, final norm, head norm
    head: Linear | None
    other_parameters: int = Field(0, ge=0)
    embedding_dropout: bool = False
    final_logit_softcap: bool = False  # logits pass through a tanh before the loss (Gemma 2)
    notes: tuple[str, ...] = ()  # what the record leaves out, for people
    config: dict[str, Any] = Field(default_factory=dict, repr=False)

    @cached_property
    def num_hidden_layers(self) -> int:
        """Layers of all groups."""
        return sum(g.count for g in self.layers)

    @cached_property
    def has_fused_experts(self) -> bool:
        """Whether all experts of a layer are one tensor, no module's weight."""
        return any(x.kind == "parameter" for g in self.layers for x in g.block.linears)

    @cached_property
    def parameters(self) -> int:
        """Every parameter once: a tied head counts as the embedding that it is (its bias still counts)."""
        head = 0
        if self.head is not None:
            head = self.head.bias_parameters + (0 if self.tie_word_embeddings else self.head.weight_parameters)
        return (
            sum(e.parameters for e in self.embeddings)
            + sum(g.count * g.block.parameters for g in self.layers)
            + sum(x.weight_parameters + x.bias_parameters for x in self.extra_linears)
            + sum(n.parameters for n in self.extra_norms)
            + head
            + self.other_parameters
        )

    @cached_property
    def stored_dtype(self) -> StoredType | None:
        """What the checkpoint's weights are stored in, as its config.json says; None where it does not."""
        named = str(self.config.get("dtype") or self.config.get("torch_dtype") or "").removeprefix("torch.")
        return STORED.get(named)

    @cached_property
    def bias_parameters(self) -> int:
        """Elements of all tensors named `*.bias`: what BitFit trains."""
        linears = sum(g.count * sum(x.bias_parameters for x in g.block.linears) for g in self.layers)
        norms = sum(g.count * sum(n.size for n in g.block.norms if n.bias) for g in self.layers)
        outside = sum(x.bias_parameters for x in self.extra_linears) + sum(n.size for n in self.extra_norms if n.bias)
        return linears + norms + outside + (self.head.bias_parameters if self.head is not None else 0)

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that one token passes through (equal to `parameters` unless there are experts)."""
        idle = sum(
            g.count * sum(x.in_features * x.out_features * (x.copies - x.active) for x in g.block.linears)
            for g in self.layers
        )
        return self.parameters - idle
