"""FSDP2 on fake tensors: torch's own `fully_shard`, applied by accelerate's own code, in a process group of one.

The group is torch's "fake" backend: its collectives return at once, and every rank holds what rank 0 holds, which is
the most (rank 0's shards are the padded ones). Streams and events do nothing. So a buffer that FSDP frees on another
stream is free at once here; on a device it can be used again once that stream has caught up, by the same stream only.
FSDP keeps references to what the streams still need (FSDPCommContext), and those are traced.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from estimators.simulate.tracker import Tracker
from profiles.plan import FOUR_BIT, Plan

MESH = ("dp_shard",)


class _Nothing:
    """A stream, an event, or a stream's context: all of it already done."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass

    def _same(self, *_: Any) -> Any:
        return self

    record = record_event = wait_stream = wait_event = synchronize = _same


class _Device:
    """What torch.distributed asks of `torch.cuda`."""

    Stream = Event = stream = _Nothing
    current_stream = staticmethod(lambda *_: _Nothing())
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    is_initialized = is_available = staticmethod(lambda: True)
    set_device = staticmethod(lambda *_: None)


def join_group(n_gpus: int, tracker: Tracker) -> Any:
    """Become rank 0 of `n_gpus` and return their mesh; from now on `tracker` sees FSDP resize its storages."""
    import torch.distributed as dist
    import torch.distributed.device_mesh as device_mesh
    from torch.distributed.fsdp._fully_shard import (
        _fsdp_collectives,
        _fsdp_init,
        _fsdp_param,
        _fsdp_param_group,
        _fsdp_state,
    )
    from torch.testing._internal.distributed.fake_pg import FakeStore

    real = device_mesh._get_device_handle
    for module in (device_mesh, _fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state):
        module._get_device_handle = lambda kind="cuda": _Device if kind == "cuda" else real(kind)

    torch.accelerator.current_stream = lambda *_: _Nothing()

    def resize(tensor: torch.Tensor, n_bytes: int) -> None:
        storage = tensor.untyped_storage()
        if storage.size() != n_bytes:
            storage.resize_(n_bytes)
            tracker.resized(tensor, "fsdp unshard", "gathered")

    _fsdp_param.alloc_storage = lambda tensor: resize(tensor, tensor.numel() * tensor.itemsize)
    _fsdp_param.free_storage = lambda tensor: resize(tensor, 0)
    allocate = _fsdp_collectives.DefaultAllocMixin.allocate

    def allocate_named(self: Any, size: Any, **options: Any) -> torch.Tensor:
        buffer: torch.Tensor = allocate(self, size, **options)
        tracker.name([buffer], "gathered")
        return buffer

    _fsdp_collectives.DefaultAllocMixin.allocate = allocate_named
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    shapes_of = ShardingPropagator._propagate_tensor_meta_non_cached

    def shapes_unseen(self: Any, schema: Any) -> Any:
        with _disable_current_modes():  # DTensor runs each operation on fakes of whole tensors, to learn its shapes
            return shapes_of(self, schema)

    ShardingPropagator._propagate_tensor_meta_non_cached = shapes_unseen
    with _disable_current_modes():
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n_gpus)
        return device_mesh.DeviceMesh("cuda", torch.arange(n_gpus), mesh_dim_names=MESH)


def shard_fsdp2(model: Any, plan: Plan, mesh: Any, *, mixed: torch.dtype | None) -> Any:
    """accelerate.utils.fsdp_utils.fsdp2_prepare_model, given the configuration that the emitted file asks for.

    mixed: the 16-bit type of mixed precision, if any.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

    in_place = plan.quantization in FOUR_BIT  # 4-bit weights are sharded where they stand, the rest is loaded in shards
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=not in_place,
        cpu_offload=CPUOffloadPolicy(pin_memory=False) if plan.offload_parameters else OffloadPolicy(),
    )
    if mixed is not None:
        plugin.set_mixed_precision(mixed, override=True)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh={MESH: mesh},
        parallelism_config=SimpleNamespace(fsdp_dim_names=MESH),
        mixed_precision="no" if mixed is None or in_place else str(mixed),  # else trained parameters become fp32
        is_main_process=False,  # the others receive what it reads: as many bytes, and no log
        device=torch.device("cuda:0"),
    )
    return fsdp2_prepare_model(accelerator, model)
