"""Join the other processes of this run: each on its own GPU or, on a machine without one, on the CPU over gloo."""

import os

import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState


def join_processes():
    """Before anything is loaded, so that each process loads onto a GPU of its own."""
    cpu = not torch.cuda.is_available()
    if cpu and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        os.environ["FSDP_OFFLOAD_PARAMS"] = "false"  # they are in main memory already
        shard_on_cpu()
    PartialState(cpu=cpu)


def shard_on_cpu():
    """accelerate 1.15 shards over accelerators only: on CPUs it would train whole copies without a word."""
    initialise = AcceleratorState.__init__

    def initialise_sharded(self, *args, fsdp_plugin=None, **kwargs):
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialise_sharded
