"""Job: everything that the child process needs, as one JSON document."""

from typing import Literal

from pydantic import Field, PositiveInt

from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.record import Record

Layers = Literal["extrapolate", "whole"]


class Job(Record):
    """A simulation to run.

    batches: (rows, padded length) of each micro-batch, in order; an optimizer step takes as many as the plan
    accumulates, the last step what is left. Empty: two steps of the plan's own batch.
    expand_kv_heads: the run repeats key and value heads itself before attention.
    load: "device_map" puts each weight on the card as it is read, as the platforms do; "to" moves a finished model.
    empty_cache_every: steps after which the loop empties the allocator's cache (0: never).
    zero_grad: the loop drops gradients at the end of a step (the Trainer) or at the start of the next.
    release_outputs: each step is a function of its own, so outputs that are kept through backward go at its end.
    max_split_size_mb: as in PYTORCH_CUDA_ALLOC_CONF.
    snapshot: file to write the allocations to, for PyTorch's memory visualiser.
    limit_to_device: stop where the card's memory ends, as the run would.
    """

    plan: Plan
    model: ModelSpec
    hardware: Hardware
    layers: Layers = "extrapolate"
    batches: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    load: Literal["device_map", "to"] = "device_map"
    empty_cache_every: int = Field(0, ge=0)
    expand_kv_heads: bool = False
    zero_grad: Literal["end", "start"] = "end"
    release_outputs: bool = False
    max_split_size_mb: PositiveInt | None = None
    limit_to_device: bool = False
    snapshot: str | None = None
