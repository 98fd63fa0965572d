"""Plan: one way to fine-tune one model on one machine, in no platform's words.

Field names are those of docs/nomenclature.md. A plan is flat so that it can be typed by hand:
`{"model": "llama-8b", "gpu": "rtx4090", "method": "lora", "seq_len": 2048}` is a whole plan. What a field left at
None becomes is the platform's own choice; `estimators/regime.py` says which.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from profiles.record import Record

Platform = Literal["hf", "llamafactory", "unsloth"]
Quantization = Literal["bf16", "fp16", "fp32", "int8", "nf4", "nf4-dq", "fp4"]
FloatType = Literal["bf16", "fp16", "fp32"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
Checkpointing = Literal["none", "full", "unsloth"]
Sharding = Literal["none", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
LossKernel = Literal["full", "fused", "chunked"]
FusedOp = Literal["norm", "rotary", "activation"]
Task = Literal["sft", "pretrain", "classification", "dpo", "orpo", "kto", "reward", "grpo"]
FOUR_BIT: frozenset[str] = frozenset({"nf4", "nf4-dq", "fp4"})
QUANTIZED: frozenset[str] = FOUR_BIT | {"int8"}

# Upper bounds only keep nonsense out (10^18 layers, a batch of 1e12); no real run comes near them.
Tokens = Annotated[int, Field(ge=1, le=16_777_216)]
MOST_COUNT = 1_048_576
SmallCount = Annotated[int, Field(ge=1, le=MOST_COUNT)]


class Plan(Record):
    """A fine-tuning run. Lengths in tokens; batch sizes in sequences; `seq_len` is the padded length of a sequence."""

    model: str | dict[str, Any]
    gpu: str | dict[str, Any] | None = None
    n_gpus: SmallCount = 1
    platform: Platform = "hf"
    task: Task = "sft"
    method: str = "lora"
    quantization: Quantization = "bf16"
    compute_dtype: FloatType | None = None
    mixed_precision: bool | None = None  # autocast (the Trainer's bf16/fp16 flag)

    lora_rank: Annotated[int, Field(ge=1, le=65_536)] = 16
    lora_alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)
    adapter_dtype: FloatType | None = None
    kbit_prepared: bool | None = None  # prepare_model_for_kbit_training: what is not quantised becomes fp32
    num_virtual_tokens: Annotated[int, Field(ge=1, le=65_536)] = 20
    prefix_projection: bool = False
    encoder_hidden_size: SmallCount | None = None  # P-tuning's prompt encoder; None = the model's hidden_size
    method_options: dict[str, Any] = Field(default_factory=dict)  # what only one method knows (adalora's init_r, ...)

    micro_batch_size: SmallCount = 1
    gradient_accumulation_steps: SmallCount = 1
    seq_len: Tokens = 2048
    mean_len: Annotated[float, Field(gt=0, le=16_777_216)] | None = None  # real tokens a sequence, for speed
    packing: bool = False
    padding_mask: bool | None = None  # batches carry a mask (unequal lengths): flash kernels of SDPA are off
    gradient_checkpointing: Checkpointing = "full"
    reentrant: bool | None = None  # use_reentrant of the checkpoints
    attention: Attention = "auto"
    loss_kernel: LossKernel | None = None
    fused_ops: tuple[FusedOp, ...] | None = None  # what a layer runs in kernels of Liger or the like
    optimizer: str = "adamw_torch_fused"
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    zero_grad_set_to_none: bool = True
    keep_outputs: bool | None = None  # the loop holds the model's outputs (logits) through backward
    use_cache: bool = False

    sharding: Sharding = "none"
    fsdp_version: Literal[1, 2] = 2  # 1: published runs of the older FSDP; no launcher here writes it
    offload_optimizer: bool = False
    offload_parameters: bool = False
    expandable_segments: bool = False

    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    num_epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    max_steps: PositiveInt | None = None
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    lr_scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    replay_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    early_stopping_patience: Annotated[int, Field(ge=0, le=10_000)] = 0
    seed: Annotated[int, Field(ge=0, le=2**31)] = 42

    @model_validator(mode="before")
    @classmethod
    def _name_the_method(cls, data: Any) -> Any:
        """LoRA over a 4-bit base is called QLoRA, and QLoRA without a named quantization means double-quantised NF4."""
        if isinstance(data, dict):
            method, quantization = data.get("method", "lora"), data.get("quantization")
            if method == "lora" and quantization in FOUR_BIT:
                return {**data, "method": "qlora"}
            if method == "qlora" and quantization is None:
                return {**data, "quantization": "nf4-dq"}
        return data

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.target_modules:
            raise ValueError("target_modules is empty: name at least one module, or 'all-linear'")
        offloads = self.sharding in ("zero2", "zero3") and self.offload_optimizer
        if self.sharding != "none" and self.n_gpus == 1 and not offloads:
            raise ValueError(f"sharding {self.sharding!r} needs n_gpus > 1, or zero2 or zero3 that offloads")
        return self

    @property
    def tokens_per_micro_batch(self) -> int:
        """Padded tokens that one forward pass holds."""
        return self.micro_batch_size * self.seq_len

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step over all cards."""
        return self.micro_batch_size * self.gradient_accumulation_steps * self.n_gpus
