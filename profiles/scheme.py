"""Specs of quantizations, optimizers and dtypes: catalogue rows that the formulas read."""

from typing import Literal

from pydantic import Field, NonNegativeFloat

from profiles.record import Record
from profiles.source import Source

DTYPE_BYTES: dict[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


class QuantizationSpec(Record):
    """How the frozen base's matmul weights are stored.

    `bits_per_weight` of the codes; every `block_size` weights share an absmax of `absmax_bits` (0: none);
    double quantisation groups `nested_block_size` absmax values under one fp32 value plus a shared offset.
    `per_row_scale` adds one fp32 scale a row (int8).
    """

    id: str
    name: str
    bits_per_weight: NonNegativeFloat
    block_size: int = Field(0, ge=0)
    absmax_bits: int = Field(0, ge=0)
    nested_block_size: int = Field(0, ge=0)
    per_row_scale: bool = False
    trainable: bool  # may the base itself be trained when stored so
    backend: Literal["none", "bitsandbytes"]
    source: Source


class OptimizerSpec(Record):
    """State bytes per trained parameter, and what the step needs on top.

    `state_bytes` are per parameter, `None` meaning that each of `state_tensors` takes the parameter's own dtype.
    `step_temporary` is how many temporaries of all parameters' size the step holds (foreach: 1, fused: 0),
    `loop_temporary` how many of the largest parameter's (optimizers that walk through them one by one), in fp32 where
    `works_in_fp32`. `matrix_state_tensors`: states of matrices inside the layers where those are fewer (Muon).
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    state_tensors: int = Field(ge=0)
    state_bytes: NonNegativeFloat | None = None
    step_temporary: NonNegativeFloat = 0.0
    loop_temporary: NonNegativeFloat = 0.0
    works_in_fp32: bool = False
    matrix_state_tensors: int | None = Field(None, ge=0)
    takes_dtensors: bool = True  # its step takes what FSDP2 shards
    paged: bool = False  # states live in managed memory, outside the caching allocator
    small_tensor_limit: int = Field(0, ge=0)  # tensors below this many elements keep fp32 states
    block_size: int = Field(0, ge=0)  # 8-bit states: one absmax (fp32) a block and state
    embeddings_fp32: bool = False  # transformers' Trainer gives nn.Embedding weights fp32 states (8-bit optimizers)
    factored: bool = False  # Adafactor: rows plus columns instead of a matrix
    source: Source
