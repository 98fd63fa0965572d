"""Loading: put a model's weights on the device in the order and with the temporaries of `from_pretrained`.

transformers 5.23 (core_model_loading.py, modeling_utils.py): one allocation of the whole model's bytes warms the cache
up and is freed; then parameters come in the natural order of their names; a weight that is quantised on the fly stands
on the device in full first.
"""

import re
from collections import Counter
from typing import Any

import torch

from estimators.methods.scalar_head import SCALAR_HEADS
from estimators.simulate.quantize import mark_quantized, quantizer
from estimators.simulate.tracker import Tracker
from profiles.plan import QUANTIZED

DEVICE = "cuda:0"


def load(
    model: Any,
    tracker: Tracker,
    *,
    quantization: str,
    compute_dtype: torch.dtype,
    layers: str,
    num_layers: int,
    moved: bool,
    device: str = DEVICE,
    storage: torch.dtype = torch.uint8,
) -> None:
    """Materialise a model that stands on the meta device.

    moved: `.to(device)` of a model loaded elsewhere: no warm-up, in the order of its modules.
    device: "cpu" where something else brings the weights to the card later. storage: the type of 4-bit codes.
    layers: the dotted name of its list of layers. num_layers: how many the whole model has; this one may have fewer.
    """
    chosen = _to_quantize(model) if quantization in QUANTIZED else set()
    quantize = quantizer(quantization, compute_dtype, storage) if chosen else None
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    parameters = {n: p for n, p in model.named_parameters(remove_duplicate=True) if n not in tied}
    if not moved:
        total = _total_bytes(parameters, chosen, 8 if quantization == "int8" else 4, layers, num_layers)
        tracker.transient(total, "caching_allocator_warmup")
    for name in parameters if moved else sorted(parameters, key=_natural):
        layer = layer_index(name, layers)
        tracker.layer = layer if layer is not None else -1
        quantized = name in chosen
        _place(
            model,
            name,
            _bring(model, name, parameters[name], device, quantized=quantized),  # nobody else holds it
            quantize if quantized else None,
        )
    tracker.layer = -1
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        persistent = leaf not in module._non_persistent_buffers_set
        module.register_buffer(leaf, torch.empty(buffer.shape, dtype=buffer.dtype, device=device), persistent)
    model.tie_weights()
    if chosen:
        mark_quantized(model, quantization)


def layer_index(name: str, layers: str) -> int | None:
    """Index of the layer that a parameter's dotted name is in, or None."""
    match = re.search(rf"(?:^|\.){re.escape(layers)}\.(\d+)\.", name)
    return int(match.group(1)) if match else None


def _to_quantize(model: Any) -> set[str]:
    """Weights that bitsandbytes stores: every nn.Linear and Conv1D but the heads and what is tied."""
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = {*get_keys_to_not_convert(model), *SCALAR_HEADS}
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name not in kept and name.split(".")[-1] not in kept
    }


def _total_bytes(
    parameters: dict[str, torch.nn.Parameter], chosen: set[str], bits: int, layers: str, num_layers: int
) -> int:
    """get_total_byte_count of the whole model: layers that are missing here count as the last one."""
    by_layer = Counter[int | None]()
    for name, parameter in parameters.items():
        elements = int(parameter.numel())
        size = elements * bits // 8 if name in chosen else elements * int(parameter.element_size())
        by_layer[layer_index(name, layers)] += size
    last = max(i for i in by_layer if i is not None)
    return sum(by_layer.values()) + (num_layers - last - 1) * by_layer[last]


def _bring(model: Any, name: str, empty: torch.nn.Parameter, device: str, *, quantized: bool) -> torch.Tensor:
    module = model.get_submodule(name.rpartition(".")[0])
    shape = empty.shape[::-1] if quantized and type(module).__name__ == "Conv1D" else empty.shape
    return torch.empty(shape, dtype=empty.dtype, device=device)


def _place(model: Any, name: str, weight: torch.Tensor, quantize: Any) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if quantize is None:
        setattr(module, leaf, torch.nn.Parameter(weight, requires_grad=getattr(module, leaf).requires_grad))
        return
    parent, _, child = owner.rpartition(".")
    setattr(model.get_submodule(parent), child, quantize(module, weight))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """core_model_loading.dot_natural_key: numbers first and by value."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
