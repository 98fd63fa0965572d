"""bitsandbytes layers on fake tensors: its own modules, filled by its own (fake) quantisation of a fake weight."""

from collections.abc import Callable
from copy import copy
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from profiles.plan import FOUR_BIT

Quantize = Callable[[torch.nn.Module, torch.Tensor], torch.nn.Module]


class Params4bit(FakeTensor):  # type: ignore[misc]
    """Codes by the name that PEFT and accelerate look for; bitsandbytes' own class cannot hold a fake tensor."""

    quant_state: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> "Params4bit":
        """nn/modules.py Params4bit.__deepcopy__: the codes and their scales, both."""
        codes: Any = torch.nn.Parameter(self.detach().clone(), requires_grad=False)
        codes.__class__ = Params4bit
        codes.__dict__.update({k: v for k, v in self.__dict__.items() if k not in codes.__dict__})
        codes.quant_state = copy(self.quant_state)
        codes.quant_state.absmax = self.quant_state.absmax.clone()
        return cast(Params4bit, codes)


class Int8Params(FakeTensor):  # type: ignore[misc]
    """Codes by the name that PEFT looks for."""


def quantizer(quantization: str, compute_dtype: torch.dtype, storage: torch.dtype = torch.uint8) -> Quantize:
    """Return the function that turns (a linear's shell, its weight on the device) into a quantised layer.

    storage: bnb_4bit_quant_storage, the type that the codes are kept in.
    """
    if quantization in FOUR_BIT:
        return lambda shell, weight: _linear_4bit(shell, weight, quantization, compute_dtype, storage)
    return _linear_8bit


def mark_quantized(model: Any, quantization: str) -> None:
    """Set what transformers sets, and PEFT and the Trainer ask for."""
    from transformers.utils.quantization_config import QuantizationMethod

    four = quantization in FOUR_BIT
    setattr(model, "is_loaded_in_4bit" if four else "is_loaded_in_8bit", True)
    model.is_quantized = True
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES


def _linear_4bit(
    shell: Any, weight: torch.Tensor, quantization: str, compute_dtype: torch.dtype, storage: torch.dtype
) -> torch.nn.Module:
    """nn/modules.py Params4bit._quantize, as transformers' Bnb4bitQuantize calls it."""
    import bitsandbytes

    options = {
        "compress_statistics": quantization == "nf4-dq",
        "quant_type": "fp4" if quantization == "fp4" else "nf4",
        "quant_storage": storage,
    }
    with _disable_current_modes():
        layer: Any = bitsandbytes.nn.Linear4bit(1, 1, bias=False, compute_dtype=compute_dtype, **options)
    codes, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, **options)
    parameter: Any = torch.nn.Parameter(codes, requires_grad=False)
    for name, value in {
        **options,
        "blocksize": 64,
        "bnb_quantized": True,
        "module": None,
        "quant_state": state,
    }.items():
        setattr(parameter, name, value)
    parameter.__class__ = Params4bit
    layer.quant_state = state
    return _dress(layer, shell, parameter)


def _linear_8bit(shell: Any, weight: torch.Tensor) -> torch.nn.Module:
    """nn/modules.py Int8Params.cuda: a fp16 copy, then codes and one scale a row."""
    import bitsandbytes

    with _disable_current_modes():
        layer: Any = bitsandbytes.nn.Linear8bitLt(1, 1, bias=False, has_fp16_weights=False, threshold=6.0)
    codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.to(torch.float16))
    parameter: Any = torch.nn.Parameter(codes, requires_grad=False)
    parameter.CB, parameter.SCB, parameter.has_fp16_weights = codes, scales, False
    parameter.__class__ = Int8Params
    return _dress(layer, shell, parameter)


def _dress(layer: Any, shell: Any, parameter: torch.nn.Parameter) -> Any:
    """Give a layer that was made empty (bitsandbytes would allocate) its shapes, bias and weight."""
    layer.out_features, layer.in_features = shell_shape(shell)
    del layer.weight
    layer.weight = parameter
    layer.bias = shell.bias
    return layer


def shell_shape(shell: Any) -> tuple[int, int]:
    """(out_features, in_features) of an nn.Linear, or of GPT-2's Conv1D, which stores the transpose."""
    rows, columns = shell.weight.shape
    return (columns, rows) if type(shell).__name__ == "Conv1D" else (rows, columns)
