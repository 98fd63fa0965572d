"""Seconds of collectives between the cards of one node, by the ring's volume and the link's measured bandwidth.

A ring moves (n - 1) / n of the data once for an all-gather or a reduce-scatter, twice for an all-reduce (NCCL's bus
bandwidth, NVIDIA/nccl-tests doc/PERFORMANCE.md).
"""

from typing import Literal

from profiles.plan import Plan, Sharding

Collective = Literal["all_reduce", "all_gather", "reduce_scatter"]
ROUNDS: dict[Collective, int] = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}


def collective_seconds(kind: Collective, *, n_bytes: float, n_gpus: int, bandwidth: float, latency: float) -> float:
    """Time of one collective over `n_bytes` (the whole, unsharded tensor) among `n_gpus` cards.

    t = rounds (n - 1) / n * bytes / bandwidth + rounds * latency; bandwidth is the bus bandwidth in bytes/s.
    """
    if n_gpus == 1 or n_bytes == 0:
        return 0.0
    rounds = ROUNDS[kind]
    return rounds * ((n_gpus - 1) / n_gpus * n_bytes / bandwidth + latency)


def micro_batch_traffic(
    sharding: Sharding, *, weights: float, gradients: float
) -> tuple[tuple[Collective, float], ...]:
    """Collectives of every micro-batch, with the bytes each moves.

    FSDP2 and ZeRO-3 gather all weights for the forward and again for the backward pass (whose recomputation uses the
    same gathered layer), and reduce-scatter gradients; torch FSDP2 reshard_after_forward, ZeRO (arXiv 1910.02054).
    """
    if sharding in ("fsdp2", "zero3"):
        return ("all_gather", 2 * weights), ("reduce_scatter", gradients)
    if sharding == "zero2":
        return (("reduce_scatter", gradients),)
    return ()


def step_traffic(sharding: Sharding, *, gradients: float, trained: float) -> tuple[tuple[Collective, float], ...]:
    """Collectives once an optimizer step: DDP's all-reduce of gradients, ZeRO-1/2's gather of updated weights."""
    if sharding == "ddp":
        return (("all_reduce", gradients),)
    if sharding == "zero1":
        return ("all_reduce", gradients), ("all_gather", trained)
    if sharding == "zero2":
        return (("all_gather", trained),)
    return ()


def is_sharded(plan: Plan) -> bool:
    """Whether optimizer states (and with them the step's work) are divided among the cards."""
    return plan.sharding in ("fsdp2", "zero1", "zero2", "zero3")
