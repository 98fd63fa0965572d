"""Started by test_fsdp2_optimizers.py in two processes: one step of each optimizer on what torch's FSDP2 shards."""

import json
from functools import partial
from typing import Any

import bitsandbytes
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.optimization import Adafactor

WIDTH = 256  # enough elements for 8-bit states
MAKERS: dict[str, Any] = {
    "adamw_torch": partial(torch.optim.AdamW, foreach=True),
    "adamw_torch_fused": partial(torch.optim.AdamW, fused=True),
    "adamw_torch_forloop": partial(torch.optim.AdamW, foreach=False),
    "adamw_8bit": bitsandbytes.optim.AdamW8bit,
    "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    "paged_adamw_32bit": bitsandbytes.optim.PagedAdamW32bit,
    "lion_32bit": bitsandbytes.optim.Lion32bit,
    "paged_lion_32bit": bitsandbytes.optim.PagedLion32bit,
    "lion_8bit": bitsandbytes.optim.Lion8bit,
    "paged_lion_8bit": bitsandbytes.optim.PagedLion8bit,
    "adafactor": partial(Adafactor, lr=1e-3, scale_parameter=False, relative_step=False),
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "rmsprop": torch.optim.RMSprop,
}


def step(make: Any, mesh: Any) -> str:
    """What the step said, or nothing where it ran."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = make(model.parameters())
    model(torch.randn(2, WIDTH)).sum().backward()
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    said = {name: step(make, mesh) for name, make in MAKERS.items()}
    if dist.get_rank() == 0:
        print(json.dumps(said))
    dist.destroy_process_group()
