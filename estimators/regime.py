"""Regime: what a platform's code makes of a plan - dtypes, autocast, attention kernel, loss path.

A plan leaves open what the platform decides; here is what today's releases decide, from their sources:
TRL 1.16 (trainer/sft_trainer.py), PEFT 0.21.2 (autocast_adapter_dtype), LLaMA-Factory 0.9.5 (model/adapter.py,
model/model_utils), Unsloth 2026.10 (models/llama.py, models/_utils.py).
"""

from dataclasses import dataclass
from typing import Literal

from estimators.methods import get_method
from estimators.tasks import sequences
from estimators.unsloth_loss import loss_budget
from profiles.gpu import GpuSpec
from profiles.model import ModelSpec
from profiles.plan import FOUR_BIT, QUANTIZED, FloatType, FusedOp, LossKernel, Plan, Task
from profiles.scheme import DTYPE_BYTES

# Beside the plan's kernels: LLaMA-Factory's preference losses and value head, TRL's ORPO, over all logits
LossPath = LossKernel | Literal["log-probs", "log-probs-dpo", "log-probs-kto", "odds-ratio", "value"]
Kernel = Literal["flash", "efficient", "math", "eager"]

# Model types whose transformers 5.23 classes say `_supports_sdpa = False`: attention is written out in Python. Gemma 2
# and gpt-oss are others, known by their soft cap and sinks.
WITHOUT_SDPA = frozenset({"bloom", "deberta-v2", "gpt_neo", "gptj"})
FLASH_MAX_HEAD_DIM = 256  # aten/native/transformers/cuda/sdp_utils.cpp: check_head_dim_size_flash
GROUPED_MIN_CAPABILITY = (8, 0)  # transformers integrations/moe.py _can_use_grouped_mm
FLASH_MIN_CAPABILITY = (8, 0)  # check_flash_attention_hardware_support
# unsloth 2026.10.7 models/loader.py: families with layers of Unsloth's own; all others run transformers', compiled
UNSLOTH_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"})
# llamafactory 0.9.5 model/model_utils/liger_kernel.py, of those that liger-kernel 0.8.5 has; not Granite, for which
# transformers/monkey_patch.py has no fused loss. It leaves Glm4's rotary and Mixtral's router as they are.
LIGER_FAMILIES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "glm4", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3"}
)
LIGER_OPS: frozenset[FusedOp] = frozenset({"norm", "rotary", "activation"})
# transformers/rms_norm.py in_place=False: a norm's gradient is a new tensor where the residual still needs the old one
LIGER_NORMS_APART = frozenset({"gemma2", "gemma3_text", "glm4", "olmo2"})
LLAMAFACTORY_LOSSES: dict[Task, LossPath] = {
    "dpo": "log-probs-dpo", "orpo": "log-probs", "kto": "log-probs-kto", "reward": "value",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Regime:
    """Resolved physics of a step. Sizes in bytes per element.

    base: weights that are not quantised. residual: what the embedding gives, and cos and sin; entry: what the first
    layer reads, fp32 behind an embedding's LayerNorm under autocast; stream: the hidden states between layers, which
    some adapters widen (layer.py stream_itemsize); mask: one in numbers, which eager attention adds to its scores.
    trained: base parameters that the method itself trains. windowed: the kernel of a layer whose window is shorter than
    the sequence, which takes a mask. own_flash: FlashAttention 2 itself, or xformers, which casts what it is given.
    several: a micro-batch has more than one sequence.
    grouped: experts run in one kernel. `quantized`: 4 or 8 bits, 0 for none. fused_kernels: the
    platform is Unsloth; fused_layers: it runs layers of its own for this model and method; fused_ops: what the other
    layers run in kernels of Liger or the like; norms_in_place: such a norm writes its gradient over the incoming one;
    loss_budget: bytes that Unsloth's loss aims at; equal_lengths: all batches have the same number of tokens.
    evaluates_logits: held-out rows are evaluated with whole logits, though training makes none (Liger's lce_forward).
    """

    compute: int
    autocast: bool
    quantized: int
    nested: bool
    base: int
    residual: int
    entry: int
    stream: int
    mask: int
    adapter: int
    trained: int
    kernel: Kernel
    windowed: Kernel
    own_flash: bool
    masked: bool
    several: bool
    grouped: bool
    loss: LossPath
    keep_outputs: bool
    outputs_to_fp32: bool
    checkpointing: bool
    reentrant: bool
    offload_checkpoints: bool
    fused_kernels: bool
    fused_layers: bool
    fused_ops: frozenset[FusedOp]
    norms_in_place: bool
    loss_budget: float
    equal_lengths: bool
    evaluates_logits: bool
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
    own_weights = method.trains_base or method.trains_layers
    masters = (
        own_weights and not method.in_half and plan.platform == "llamafactory" and plan.sharding in ("none", "ddp")
    )
    trained = 4 if masters else base  # model/adapter.py casts trainable parameters to fp32 unless pure_bf16
    if method.trains_base:
        base = trained
    if quantized and plan.kbit_prepared:
        base = 4
    fused_layers = runs_unsloth_layers(plan, model)
    masked = (has_mask(plan) or method.adds_keys) and not fused_layers
    adapter = DTYPE_BYTES[plan.adapter_dtype] if plan.adapter_dtype else _adapter_bytes(plan, compute)
    if not quantized:  # PEFT makes adapters in the base's dtype, and only ever widens them; prompts in fp32
        adapter = 4 if method.adds_tokens or method.adds_keys else max(adapter, base)
    autocast = autocast and compute < 4
    if autocast and plan.sharding not in ("none", "ddp") and plan.fsdp_version == 2:
        autocast = False
        base = trained = adapter = compute
    in_half = compute < 4 and (autocast or base < 4)
    embedding_norm = any(n.place == "embedding" and n.kind == "layernorm" for n in model.extra_norms)
    entry = 4 if autocast and embedding_norm else base
    return Regime(
        compute=compute,
        autocast=autocast,
        quantized=quantized,
        nested=plan.quantization == "nf4-dq",
        base=base,
        residual=base,
        entry=entry,
        stream=entry,
        mask=entry if model.kind == "encoder" else base,
        adapter=adapter,
        trained=trained,
        kernel=attention_kernel(plan, model, gpu, in_half=in_half, masked=masked),
        windowed=attention_kernel(plan, model, gpu, in_half=in_half, masked=True),
        own_flash=plan.attention == "flash_attention_2" or fused_layers,
        masked=masked,
        several=sequences(plan) > 1,
        grouped=(gpu.compute_capability or FLASH_MIN_CAPABILITY) >= GROUPED_MIN_CAPABILITY,
        loss=_loss_kernel(plan, model),
        keep_outputs=bool(plan.keep_outputs),
        outputs_to_fp32=autocast and plan.platform == "llamafactory",
        checkpointing=plan.gradient_checkpointing != "none",
        reentrant=_is_reentrant(plan),
        offload_checkpoints=plan.gradient_checkpointing == "unsloth",
        fused_kernels=plan.platform == "unsloth",
        fused_layers=fused_layers,
        fused_ops=_fused_ops(plan, model),
        norms_in_place=model.model_type not in LIGER_NORMS_APART,
        loss_budget=loss_budget(gpu.memory_bytes),
        equal_lengths=plan.padding_mask is False,
        evaluates_logits=_runs_liger(plan, model) and plan.eval_fraction > 0,
        use_cache=plan.use_cache and plan.gradient_checkpointing == "none",
        compute_dtype=compute_dtype,
    )


def _is_reentrant(plan: Plan) -> bool:
    if plan.reentrant is not None:
        return plan.reentrant
    return plan.platform == "unsloth" or (plan.platform == "llamafactory" and plan.sharding != "fsdp2")


def _runs_liger(plan: Plan, model: ModelSpec) -> bool:
    """LLaMA-Factory's enable_liger_kernel, which is what its chunked loss means, replaces layers' operations too; a
    model that Liger does not know runs as without it."""
    return plan.platform == "llamafactory" and plan.loss_kernel == "chunked" and model.model_type in LIGER_FAMILIES


def _fused_ops(plan: Plan, model: ModelSpec) -> frozenset[FusedOp]:
    if plan.fused_ops is not None:
        return frozenset(plan.fused_ops)
    if not _runs_liger(plan, model):
        return frozenset()
    return LIGER_OPS - ({"rotary"} if model.model_type == "glm4" else set())


def runs_unsloth_layers(plan: Plan, model: ModelSpec) -> bool:
    """Whether Unsloth has layers of its own for this: LoRA on a 16-bit or 4-bit base (loader.py sends full fine-tuning
    and int8 to FastModel, which compiles transformers' layers)."""
    if plan.platform != "unsloth" or model.model_type not in UNSLOTH_FAMILIES or plan.quantization == "int8":
        return False
    return get_method(plan.method).peft_type == "LORA" and plan.task != "classification"


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


def _loss_kernel(plan: Plan, model: ModelSpec) -> LossPath:
    """TRL: fused LM head, no full logits (but ORPO's); LLaMA-Factory: the model's own loss, with Liger in chunks where
    Liger knows the model, or log probabilities of all logits; Unsloth: chunked cross-entropy.

    What is no causal language model has only its own loss.
    """
    if model.kind != "causal-lm" or plan.task == "classification":
        return "full"
    if plan.platform == "llamafactory" and plan.task in LLAMAFACTORY_LOSSES:
        return LLAMAFACTORY_LOSSES[plan.task]
    if plan.task == "reward":
        return "full"
    if plan.task == "orpo":
        return "odds-ratio"
    if plan.platform == "llamafactory" and plan.loss_kernel in (None, "chunked"):
        return "chunked" if _runs_liger(plan, model) else "full"
    if plan.loss_kernel is not None:
        return plan.loss_kernel
    return "chunked" if plan.platform == "unsloth" and plan.task in ("sft", "pretrain") else "fused"


def has_mask(plan: Plan) -> bool:
    """Sequences of unequal length carry a padding mask unless they are alone or packed; real data is unequal."""
    if plan.padding_mask is not None:
        return plan.padding_mask
    return sequences(plan) > 1 and not plan.packing


def attention_kernel(plan: Plan, model: ModelSpec, gpu: GpuSpec, *, in_half: bool, masked: bool) -> Kernel:
    """The kernel that scaled_dot_product_attention picks (sdp_utils.cpp: flash, then efficient, then math).

    Flash takes half precision, no mask, compute capability 8.0 and head_dim to 256. Efficient takes a mask, but equal
    numbers of query and key heads; transformers repeats the key heads only when there is a mask.
    """
    attention = model.layers[0].block.attention
    if runs_unsloth_layers(plan, model):  # xformers' flash or cutlass kernel: neither builds s x s tensors
        return "flash" if (gpu.compute_capability or FLASH_MIN_CAPABILITY) >= FLASH_MIN_CAPABILITY else "efficient"
    if plan.platform == "unsloth" and attention.sinks:  # unsloth_zoo temporary_patches/gpt_oss.py: flex attention
        return "flash"
    without_sdpa = model.model_type in WITHOUT_SDPA and plan.attention != "flash_attention_2"
    if plan.attention == "eager" or attention.logit_softcap or attention.sinks or without_sdpa:
        return "eager"
    capability = gpu.compute_capability or FLASH_MIN_CAPABILITY
    alike = attention.num_heads == attention.num_key_value_heads
    expanded = attention.form == "falcon" and attention.num_key_value_heads == 1  # its call asks for no grouped keys
    flash = in_half and not expanded and capability >= FLASH_MIN_CAPABILITY and attention.head_dim <= FLASH_MAX_HEAD_DIM
    if plan.attention == "flash_attention_2":
        return "flash"
    if flash and not masked and attention.head_dim == attention.v_head_dim:
        return "flash"
    repeated = alike or (masked and not expanded)
    return "efficient" if repeated and gpu.vendor != "CPU" else "math"
