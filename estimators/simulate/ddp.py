"""DDP's buckets, modelled from source: what torch's reducer allocates for the gradients of one rank.

torch/csrc/distributed/c10d/reducer.cpp, initialize_buckets: with gradient_as_bucket_view off (accelerate's default) a
bucket is a flat tensor beside its gradients, there from the constructor on. Buckets of 25 MiB (the first of 1 MiB) mix
layers; here one holds a layer's gradients, so that layers stay alike: as many bytes in other pieces.
"""

from collections import defaultdict
from typing import Any

import torch

from estimators.simulate.load import DEVICE, layer_index
from estimators.simulate.tracker import Tracker


def allocate_buckets(model: Any, layers: str, tracker: Tracker) -> list[torch.Tensor]:
    """One flat buffer for each layer's trained parameters (and one for all outside of the layers), by dtype."""
    elements: dict[tuple[int, torch.dtype], int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            index = layer_index(name, layers)
            elements[-1 if index is None else index, parameter.dtype] += parameter.numel()
    buckets: list[torch.Tensor] = []
    for (layer, dtype), count in sorted(elements.items(), key=lambda item: item[0][0]):
        bucket = torch.empty(count, dtype=dtype, device=DEVICE)
        tracker.name([bucket], "gathered", layer)
        buckets.append(bucket)
    return buckets
