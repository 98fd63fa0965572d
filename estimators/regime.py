"""Regime: what a platform's code makes of a plan - dtypes, autocast, attention kernel, loss path.

A plan leaves open what the platform decides; here is what today's releases decide, from their sources:
TRL 1.16 (trainer/sft_trainer.py), PEFT 0.21.2 (autocast_adapter_dtype), LLaMA-Factory 0.9.5 (model/adapter.py,
model/model_utils), Unsloth 2026.10 (models/llama.py, models/_utils.py).
"""

from dataclasses import dataclass
from typing import Literal

from estimators.methods import get_method
from profiles.gpu import GpuSpec
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, QUANTIZED, FloatType, LossKernel, Plan
from profiles.scheme import DTYPE_BYTES

Kernel = Literal["flash", "efficient", "math", "eager"]

FLASH_MAX_HEAD_DIM = 256  # aten/native/transformers/cuda/sdp_utils.cpp: check_head_dim_size_flash
FLASH_MIN_CAPABILITY = (8, 0)  # check_flash_attention_hardware_support


@dataclass(frozen=True, slots=True)
class Regime:
    """Resolved physics of a step. Sizes in bytes per element.

    base: matmul weights that are not quantised. rest: embeddings, norms and head. residual: the hidden-state stream.
    trained: base parameters that the method itself trains. `quantized` 4 or 8 bits, 0 for none.
    """

    compute: int
    autocast: bool
    quantized: int
    nested: bool
    base: int
    rest: int
    residual: int
    adapter: int
    trained: int
    kernel: Kernel
    masked: bool
    loss: LossKernel
    keep_outputs: bool
    outputs_to_fp32: bool
    checkpointing: bool
    reentrant: bool
    offload_checkpoints: bool
    fused_kernels: bool
    use_cache: bool
    compute_dtype: FloatType


def default_compute_dtype(gpu: GpuSpec) -> FloatType:
    """bf16 where the card has it, else fp16; fp32 on a CPU, where 16-bit matmuls are slower."""
    if gpu.vendor == "CPU":
        return "fp32"
    return "fp16" if gpu.bf16 is False else "bf16"


def resolve_regime(plan: Plan, model: ModelSpec, gpu: GpuSpec) -> Regime:
    """Fill in what the plan leaves to its platform, on this card.

    FSDP2 and DeepSpeed do not run under autocast (accelerate 1.15 accelerator.py: `_prepare_fsdp2` passes
    `prepare_model` by, `native_amp` stays off for DeepSpeed): all weights are cast as they are gathered or loaded. What
    is stored, estimators/sharding.py says. FSDP1 ran under autocast all the same.
    """
    method = get_method(plan.method)
    compute_dtype = plan.compute_dtype or _compute_dtype(plan, gpu)
    compute = DTYPE_BYTES[compute_dtype]
    quantized = 4 if plan.quantization in FOUR_BIT else 8 if plan.quantization == "int8" else 0
    autocast = plan.mixed_precision if plan.mixed_precision is not None else compute < 4
    base = compute if quantized else DTYPE_BYTES[plan.quantization]
    own_weights = method.trains_base or method.id == "freeze"
    masters = own_weights and plan.platform == "llamafactory" and plan.sharding in ("none", "ddp")
    trained = 4 if masters else base  # model/adapter.py casts trainable parameters to fp32 unless pure_bf16
    if method.trains_base:
        base = trained
    kbit_prepared = bool(plan.kbit_prepared) if plan.kbit_prepared is not None else False
    rest = 4 if quantized and kbit_prepared else base
    masked = has_mask(plan) or method.adds_keys
    adapter = DTYPE_BYTES[plan.adapter_dtype] if plan.adapter_dtype else _adapter_bytes(plan, compute)
    autocast = autocast and compute < 4
    if autocast and plan.sharding not in ("none", "ddp") and plan.fsdp_version == 2:
        autocast = False
        base = rest = trained = adapter = compute
    return Regime(
        compute=compute,
        autocast=autocast,
        quantized=quantized,
        nested=plan.quantization == "nf4-dq",
        base=base,
        rest=rest,
        residual=rest,
        adapter=adapter,
        trained=trained,
        kernel=attention_kernel(plan, model, gpu, in_half=compute < 4 and (autocast or rest < 4), masked=masked),
        masked=masked,
        loss=plan.loss_kernel or _loss_kernel(plan),
        keep_outputs=bool(plan.keep_outputs),
        outputs_to_fp32=autocast and plan.platform == "llamafactory",
        checkpointing=plan.gradient_checkpointing != "none",
        reentrant=plan.platform != "hf",
        offload_checkpoints=plan.gradient_checkpointing == "unsloth",
        fused_kernels=plan.platform == "unsloth",
        use_cache=plan.use_cache and plan.gradient_checkpointing == "none",
        compute_dtype=compute_dtype,
    )


def _compute_dtype(plan: Plan, gpu: GpuSpec) -> FloatType:
    if plan.quantization in ("bf16", "fp16"):
        return plan.quantization
    if plan.quantization == "fp32" and plan.mixed_precision is not True:
        return "fp32"
    return default_compute_dtype(gpu)


def _adapter_bytes(plan: Plan, compute: int) -> int:
    """fp32 (PEFT's autocast_adapter_dtype), but TRL casts the adapters of a quantised base to bf16."""
    if plan.platform == "hf" and plan.quantization in QUANTIZED:
        return min(compute, 2)
    return 4


def _loss_kernel(plan: Plan) -> LossKernel:
    """TRL: fused LM head, no full logits; LLaMA-Factory: the model's own loss; Unsloth: chunked cross-entropy."""
    if plan.platform == "llamafactory" or plan.task == "classification":
        return "full"
    return "chunked" if plan.platform == "unsloth" else "fused"


def has_mask(plan: Plan) -> bool:
    """Sequences of unequal length carry a padding mask unless they are alone or packed; real data is unequal."""
    if plan.padding_mask is not None:
        return plan.padding_mask
    return plan.micro_batch_size > 1 and not plan.packing


def attention_kernel(plan: Plan, model: ModelSpec, gpu: GpuSpec, *, in_half: bool, masked: bool) -> Kernel:
    """The kernel that scaled_dot_product_attention picks (sdp_utils.cpp: flash, then efficient, then math).

    Flash takes half precision, no mask, compute capability 8.0 and head_dim to 256. Efficient takes a mask, but equal
    numbers of query and key heads; transformers repeats the key heads only when there is a mask.
    """
    attention = model.layers[0].block.attention
    if plan.platform == "unsloth":
        return "flash"  # flash-attn, xformers or flex attention, whichever the card runs: none builds s x s tensors
    if plan.attention == "eager" or attention.logit_softcap or attention.sinks:
        return "eager"
    capability = gpu.compute_capability or FLASH_MIN_CAPABILITY
    flash = in_half and capability >= FLASH_MIN_CAPABILITY and attention.head_dim <= FLASH_MAX_HEAD_DIM
    if plan.attention == "flash_attention_2":
        return "flash"
    if flash and not masked and attention.head_dim == attention.v_head_dim:
        return "flash"
    repeated = masked or attention.num_heads == attention.num_key_value_heads
    return "efficient" if repeated and gpu.vendor != "CPU" else "math"
