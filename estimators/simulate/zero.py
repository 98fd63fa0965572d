"""DeepSpeed ZeRO-1 and ZeRO-2, modelled from source: what DeepSpeed 0.19.8 allocates around the step that is traced.

runtime/zero/stage_1_and_2.py: trained parameters are flat in 16 bits, one partition of them again in fp32 with its
states. While backward runs there is one buffer of reduce_bucket_size elements (setup_buckets); what is in it is copied
to be reduced (allreduce_and_copy flattens), once at the end of backward in stage 1, and whenever the buffer is full in
stage 2, where a gradient lies in the buffer and not in its parameter. The step flattens the partition's gradients and
casts them to fp32.
"""

from typing import Any

import torch

from estimators.sharding import REDUCE_BUCKET
from estimators.simulate.load import DEVICE
from estimators.simulate.tracker import Tracker
from profiles.plan import Plan


class Zero:
    """Rank 0's buffers for the trained parameters of a model. `module` holds the partition that the optimizer steps."""

    def __init__(self, trained: tuple[torch.nn.Parameter, ...], plan: Plan, tracker: Tracker) -> None:
        self.trained = trained
        self.tracker = tracker
        self.partitioned = plan.sharding == "zero2"
        self.device = "cpu" if plan.offload_optimizer else DEVICE
        self.dtype = trained[0].dtype
        self.elements = sum(p.numel() for p in trained)
        self.share = -(-self.elements // plan.n_gpus)
        self.module = torch.nn.Module()
        master = torch.nn.Parameter(torch.empty(self.share, dtype=torch.float32, device=self.device))
        self.module.master = master
        tracker.name([master], "optimizer_states")
        self.bucket: torch.Tensor | None = None
        self.gradients: torch.Tensor | None = None
        self.filled = 0
        if self.partitioned:
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(self._into_bucket)

    def before_backward(self) -> None:
        """Allocate the buffer."""
        self.bucket = torch.empty(REDUCE_BUCKET, dtype=self.dtype, device=DEVICE)
        self.tracker.name([self.bucket], "gathered")

    def after_backward(self) -> None:
        """Reduce what is left and let the buffer go; in stage 2 keep this rank's part."""
        self._reduce(self.filled if self.partitioned else min(self.elements, REDUCE_BUCKET))
        self.bucket = None

    def before_step(self) -> None:
        """Gradients of the partition in fp32."""
        flat = torch.empty(self.share, dtype=self.dtype, device=self.device)
        self.module.master.grad = flat.to(torch.float32)

    def after_step(self) -> None:
        """Drop all gradients."""
        self.module.master.grad = self.gradients = None
        for parameter in self.trained:
            parameter.grad = None

    def _into_bucket(self, parameter: Any) -> None:
        if self.filled + parameter.numel() > REDUCE_BUCKET:
            self._reduce(self.filled)
        self.filled += min(parameter.numel(), REDUCE_BUCKET)
        parameter.grad = None

    def _reduce(self, elements: int) -> None:
        self.tracker.transient(elements * self.dtype.itemsize, "zero reduce")
        self.filled = 0
        if self.partitioned and self.gradients is None and self.device == DEVICE:
            self.gradients = torch.empty(self.share, dtype=self.dtype, device=DEVICE)
            self.tracker.name([self.gradients], "gradients")
