"""A trace as a memory snapshot: what PyTorch's visualiser (https://docs.pytorch.org/memory_viz) opens.

The format is that of torch.cuda.memory._snapshot (torch/csrc/cuda/memory_snapshot.cpp): segments as they stand at the
end, and every allocation and free in order. Each allocation's stack says stage, layer, module and operation.
"""

import pickle
from pathlib import Path
from typing import Any

from estimators.allocator import CachingAllocator
from estimators.simulate.replay import PHASE_OF
from estimators.simulate.trace import Mark, Storage, Trace


def write_snapshot(trace: Trace, path: str | Path) -> None:
    """Replay `trace` and write its pickled snapshot to `path`."""
    allocator = CachingAllocator()
    actions: list[dict[str, Any]] = []
    frames: dict[int, list[dict[str, Any]]] = {}
    for mark, start, end in trace.spans():
        for position in range(start, end):
            event = trace.events[position]
            index = event if event >= 0 else ~event
            if event >= 0:
                allocator.malloc(index, trace.storages[index].n_bytes)
                frames[index] = _frames(trace.storages[index], mark)
            action = {
                "action": "alloc" if event >= 0 else "free_completed",
                "addr": allocator.address_of(index),
                "size": allocator.size_of(index),
                "stream": 0,
                "time_us": position,
                "frames": frames[index],
            }
            if event < 0:
                actions.append({**action, "action": "free_requested"})
                allocator.free(index)
            actions.append(action)
    segments = [_segment(small, blocks, frames) for small, blocks in allocator.segments()]
    snapshot = {"segments": segments, "device_traces": [actions], "allocator_settings": {}}
    Path(path).write_bytes(pickle.dumps(snapshot))


def _frames(storage: Storage, mark: Mark) -> list[dict[str, Any]]:
    layer = f", layer {storage.layer}" if storage.layer >= 0 else ""
    names = (storage.op, storage.module or "-", f"{mark.stage} of step {mark.step + 1}{layer} ({PHASE_OF[mark.stage]})")
    return [{"filename": storage.label or "tensor", "line": 0, "name": name} for name in names]


def _segment(small: bool, blocks: list[Any], frames: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    live = sum(b.size for b in blocks if not b.free)
    return {
        "device": 0,
        "address": blocks[0].address,
        "total_size": sum(b.size for b in blocks),
        "allocated_size": live,
        "active_size": live,
        "requested_size": live,
        "stream": 0,
        "segment_type": "small" if small else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": [
            {
                "address": b.address,
                "size": b.size,
                "requested_size": b.size,
                "state": "inactive" if b.free else "active_allocated",
                "frames": [] if b.free else frames.get(b.key, []),
            }
            for b in blocks
        ],
    }
