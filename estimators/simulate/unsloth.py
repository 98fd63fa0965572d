"""Unsloth in the simulated tier: its layers in place of transformers', its checkpoints, its loss.

models/llama.py (LlamaDecoderLayer_fast_forward, LlamaAttention_fast_forward, patch_peft_model), gemma2.py and qwen3.py
of unsloth 2026.10.7 for the families of `FAST_MODELS`; for all others, for full fine-tuning and for int8 Unsloth runs
transformers' own layers (models/loader.py: FastModel), compiled, which is simulated as if it were not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from estimators.regime import Regime
from estimators.simulate.rms_norm import rms_norm
from estimators.simulate.unsloth_checkpoint import OffloadedCheckpoints
from estimators.simulate.unsloth_kernels import LoraLinears, LoraMlp, NormRope, Projection, Rope
from profiles.model import ModelSpec
from profiles.plan import Plan

Forward = Callable[..., Any]
GEMMA = frozenset({"gemma", "gemma2"})


def patch_unsloth(model: Any, plan: Plan, spec: ModelSpec, regime: Regime) -> None:
    """Give a built (and wrapped) model Unsloth's layers and checkpoints."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if regime.offload_checkpoints:
        checkpoints = OffloadedCheckpoints()
        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = checkpoints.run
    if not regime.fused_layers:
        return
    inner = base.base_model
    gemma = spec.model_type in GEMMA
    _without_mask(inner)
    if plan.packing:
        inner.rotary_emb.forward = _tables(spec)
    inner.norm.forward = partial(rms_norm, inner.norm, in_place=not gemma)
    for layer in inner.layers:
        layer.forward = partial(_checkpointed, layer, gemma=gemma)
        layer.self_attn.forward = partial(_attention, layer.self_attn, indexed=plan.packing)
        layer.mlp.forward = partial(_mlp, layer.mlp, layer.mlp.forward)


def _without_mask(inner: Any) -> None:
    """LlamaModel_fast_forward drops the padding mask while training: padding is masked by its labels alone."""
    forward = inner.forward

    def unmasked(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{**kwargs, "attention_mask": None})

    inner.forward = unmasked


def _tables(spec: ModelSpec) -> Forward:
    """With position ids, cos and sin of every position that the model knows (extend_rope_embedding)."""
    tables: list[torch.Tensor] = []

    def rotary(x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        if not tables:
            shape = (1, spec.max_position_embeddings, spec.layers[0].block.attention.head_dim)
            tables.extend(torch.empty(shape, dtype=x.dtype, device=x.device) for _ in range(2))
        return tuple(tables)

    return rotary


def _checkpointed(layer: Any, hidden: torch.Tensor, *_: Any, gemma: bool, **__: Any) -> Any:
    body = partial(_decoder_layer, layer, gemma=gemma)
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(body, hidden)
    return body(hidden)


def _decoder_layer(layer: Any, hidden: torch.Tensor, *, gemma: bool) -> torch.Tensor:
    normed = rms_norm(layer.input_layernorm, hidden, in_place=not gemma)
    attended, _ = layer.self_attn(normed)
    del normed
    four_norms = hasattr(layer, "pre_feedforward_layernorm")  # Gemma 2
    if four_norms:
        attended = rms_norm(layer.post_attention_layernorm, attended, in_place=not gemma)
    hidden = hidden + attended
    del attended
    before_mlp = layer.pre_feedforward_layernorm if four_norms else layer.post_attention_layernorm
    fed = layer.mlp(rms_norm(before_mlp, hidden, in_place=not gemma))
    if four_norms:
        fed = rms_norm(layer.post_feedforward_layernorm, fed, in_place=not gemma)
    return hidden + fed


def _attention(module: Any, hidden: torch.Tensor, *_: Any, indexed: bool, **__: Any) -> tuple[torch.Tensor, None]:
    batch, length, _width = hidden.shape
    names = ("q_proj", "k_proj", "v_proj")
    q, k, v = _apply(LoraLinears, hidden, [getattr(module, n) for n in names]) or (
        getattr(module, n)(hidden) for n in names
    )
    q, k, v = (x.view(batch, length, -1, module.head_dim) for x in (q, k, v))
    if hasattr(module, "q_norm"):
        q, k = NormRope.apply(q, k)
    else:
        q, k = Rope.apply(q.transpose(1, 2), k.transpose(1, 2), indexed)
    v = v.transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:  # utils/attention_dispatch.py, xformers: a key head for each query head
        k, v = (_expanded(x, groups) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    del q, k, v
    out = out.transpose(1, 2).reshape(batch, length, -1)
    projected = _apply(LoraLinears, out, [module.o_proj])
    return (projected[0] if projected else module.o_proj(out)), None


def _expanded(x: torch.Tensor, groups: int) -> torch.Tensor:
    batch, heads, length, width = x.shape
    rows = x.transpose(1, 2)[:, :, :, None].expand(batch, length, heads, groups, width)
    return rows.reshape(batch, length, heads * groups, width).transpose(1, 2)


def _mlp(module: Any, plain: Forward, hidden: torch.Tensor) -> torch.Tensor:
    fused = _apply(LoraMlp, hidden, [module.gate_proj, module.up_proj, module.down_proj])
    return plain(hidden) if fused is None else fused


def _apply(function: Any, x: torch.Tensor, modules: list[Any]) -> Any:
    """Run the fused function over `modules`; None where patch_peft_model leaves them to PEFT: a module without an
    adapter, a bias in the base, DoRA."""
    if not all(map(_fusable, modules)):
        return None
    projections = tuple(map(_projection, modules))
    return function.apply(x, projections, *(t for p in projections for t in (p.a, p.b)))


def _fusable(module: Any) -> bool:
    if not hasattr(module, "lora_A") or module.base_layer.bias is not None:
        return False
    return not module.lora_variant and module.base_layer.weight.dtype != torch.float32


def _projection(module: Any) -> Projection:
    (name,) = module.active_adapters
    weight = module.base_layer.weight
    dropout = module.lora_dropout[name]
    return Projection(
        weight=weight,
        state=getattr(weight, "quant_state", None),
        a=module.lora_A[name].weight,
        b=module.lora_B[name].weight,
        scaling=float(module.scaling[name]),
        dropout=float(getattr(dropout, "p", 0.0)),
    )
