"""What has to be replaced in torch, transformers and bitsandbytes for fake CUDA tensors. In the child process only."""

import math
import os
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from estimators.simulate.kernels import attention_kernel

_libraries: list[Any] = []  # a torch.library.Library undoes its registrations when it goes

Apply = Any
FLASH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PAGED_MIN_ELEMENTS = 100_000  # bitsandbytes optim/optimizer.py get_state_buffer


def apply_patches(
    *,
    capability: tuple[int, int],
    expand_kv_heads: bool = False,
    flash_dtype: str | None = None,
    quantizes: bool = False,
) -> None:
    """Make this process act as one with a GPU of this compute capability.

    expand_kv_heads: the run repeats key and value heads itself before attention. flash_dtype: FlashAttention 2 runs in
    the place of SDPA, and casts fp32 inputs to this. quantizes: bitsandbytes is in use.
    """
    torch.compile = _uncompiled  # bitsandbytes compiles CPU kernels when imported: two seconds for nothing
    _device_answers(capability)
    _one_kernel_backwards()
    _grouped_products()
    _foreach_accepts_fake()
    if quantizes:
        _quantizer_without_device()
    torch.nn.Module._apply = _apply
    # DoRA copies a 4-bit layer, and torch a tensor's attributes with it: a copied mode corrupts memory
    FakeTensorMode.__deepcopy__ = lambda mode, _: mode
    _attention(capability, expand_kv_heads, FLASH_DTYPES.get(flash_dtype or ""))
    import transformers.utils.import_utils as import_utils

    import_utils.is_fake_tensor = lambda _: False  # the masks shall be examined as they are on a device


def _uncompiled(function: Any = None, **_: Any) -> Any:
    return function if function is not None else (lambda f: f)


def _device_answers(capability: tuple[int, int]) -> None:
    import torch.cuda.amp.common as amp

    amp.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: capability >= (8, 0)
    torch.cuda.get_device_capability = lambda *_: capability


def _one_kernel_backwards() -> None:
    """A CPU-only build has no CUDA kernel for these, so autograd would decompose them into six temporaries."""
    if torch.backends.cuda.is_built():
        return
    library = torch.library.Library("aten", "IMPL")
    for name in ("silu_backward", "mish_backward"):
        library.impl(name, lambda grad, _: torch.empty_like(grad), "CUDA")
    _libraries.append(library)


def _grouped_products() -> None:
    """torch's shape rule takes bf16 alone; the kernel (cuda/GroupedBlas.cpp) loops over the groups of other types."""
    import torch._meta_registrations as meta

    def product(a: torch.Tensor, b: torch.Tensor, *_: Any, offs: Any = None, out_dtype: Any = None, **__: Any) -> Any:
        return meta._create_grouped_mm_output_tensor(a, b, offs, out_dtype)

    meta._meta_grouped_mm_common = product


def _foreach_accepts_fake() -> None:
    """Optimizers and gradient clipping take the foreach path only for types that they know."""
    import torch.optim.optimizer as optimizer
    import torch.utils._foreach_utils as foreach

    optimizer._foreach_supported_types.append(FakeTensor)
    if foreach._foreach_supported_types is not optimizer._foreach_supported_types:
        foreach._foreach_supported_types.append(FakeTensor)


def _quantizer_without_device() -> None:
    """bitsandbytes: large paged states live in managed memory, outside the caching allocator."""
    import bitsandbytes.functional as functional
    import bitsandbytes.nn.modules as modules
    import bitsandbytes.optim.optimizer as optimizer

    def state_buffer(self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        paged = self.is_paged and p.numel() >= PAGED_MIN_ELEMENTS
        return torch.zeros_like(p, dtype=dtype, device="cpu" if paged else p.device)

    optimizer.Optimizer8bit.get_state_buffer = state_buffer
    functional.is_on_gpu = lambda _: True
    modules.fix_4bit_weight_quant_state_from_module = _find_quant_state
    optimizer.sync_gpu = lambda _: None


def _find_quant_state(module: Any) -> None:
    """bitsandbytes makes a Params4bit of a weight that FSDP gathered; a fake tensor cannot become one."""
    if getattr(module.weight, "quant_state", None) is None:
        module.weight.quant_state = module.quant_state


def _apply(
    self: torch.nn.Module, fn: Apply, recurse: bool = True, seen: dict[int, Any] | None = None
) -> torch.nn.Module:
    """nn.Module._apply by assignment: torch's own swaps tensors in place, which fake parameters refuse."""
    seen = {} if seen is None else seen
    if recurse:
        for child in self.children():
            _apply(child, fn, True, seen)
    for key, parameter in self._parameters.items():
        if parameter is None:
            continue
        if id(parameter) not in seen:
            with torch.no_grad():
                moved = fn(parameter)
            if moved is parameter or (moved.device == parameter.device and moved.dtype == parameter.dtype):
                moved = parameter
            elif not isinstance(moved, torch.nn.Parameter):
                moved = torch.nn.Parameter(moved, parameter.requires_grad)
            seen[id(parameter)] = (parameter, moved)  # the first keeps its id from being given again
        self._parameters[key] = seen[id(parameter)][1]
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = fn(buffer)
    return self


def _attention(capability: tuple[int, int], expand_kv_heads: bool, flash_dtype: torch.dtype | None) -> None:
    """scaled_dot_product_attention with the kernel that the GPU would take."""
    if flash_dtype is not None:  # FlashAttention 2 groups keys by itself, whatever mask a prefix brings
        os.environ["TRANSFORMERS_SDPA_FORCE_GQA"] = "1"
    original = torch.nn.functional.scaled_dot_product_attention

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        autocast = torch.is_autocast_enabled("cuda")
        if autocast:  # the function is on autocast's list: inputs are cast before a kernel is chosen
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(dtype)
        elif flash_dtype is not None and query.dtype == torch.float32:
            query, key, value = (x.to(flash_dtype) for x in (query, key, value))
        if expand_kv_heads and key.shape[1] != query.shape[1]:
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
            enable_gqa = False
        kernel = attention_kernel(
            capability=capability,
            half=query.dtype.itemsize == 2,
            bf16=query.dtype == torch.bfloat16,
            masked=attn_mask is not None and flash_dtype is None,  # FlashAttention 2 takes no mask
            heads=query.shape[1],
            kv_heads=key.shape[1],
            gqa=enable_gqa or flash_dtype is not None,  # and groups keys by itself
            dims=(query.shape[-1], value.shape[-1]),
        )
        with torch.autocast("cuda", enabled=False):
            if kernel == "flash":
                return _flash(query, key, value, dropout_p, is_causal, scale)
            if kernel == "efficient":
                return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    torch.nn.functional.scaled_dot_product_attention = attention


def _pad(x: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -x.shape[-1] % multiple
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, causal: bool, scale: float | None
) -> torch.Tensor:
    width = query.shape[-1]
    scale = scale if scale is not None else 1 / math.sqrt(width)
    query, key, value = (_pad(x, 8) for x in (query, key, value))
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, causal, False, scale=scale
    )[0]
    return out[..., :width] if out.shape[-1] != width else out


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """transformers/attention.cpp: a boolean mask becomes additive, padded to a multiple of 8, expanded by strides."""
    if mask is not None:
        if mask.dtype == torch.bool:
            zero = torch.zeros((), dtype=query.dtype, device=query.device)
            mask = torch.where(mask, zero, torch.full((), -math.inf, dtype=query.dtype, device=query.device))
        if mask.shape[-1] % 8:
            mask = _pad(mask, 8)[..., : mask.shape[-1]]
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    trained = query.requires_grad or key.requires_grad or value.requires_grad
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, trained, dropout, causal, scale=scale
    )[0]
    return out
