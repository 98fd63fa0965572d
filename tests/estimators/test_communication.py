"""Collectives: ring volume, and which of them each sharding needs."""

import pytest

from estimators.communication import collective_seconds, is_sharded, micro_batch_traffic, step_traffic
from profiles.plan import Plan


def test_all_reduce_moves_twice_what_a_gather_moves() -> None:
    common = {"n_bytes": 8e9, "n_gpus": 8, "bandwidth": 200e9, "latency": 0.0}
    gather = collective_seconds("all_gather", **common)
    assert gather == pytest.approx(7 / 8 * 8e9 / 200e9)
    assert collective_seconds("reduce_scatter", **common) == gather
    assert collective_seconds("all_reduce", **common) == pytest.approx(2 * gather)


def test_one_card_and_nothing_to_move_cost_nothing() -> None:
    assert collective_seconds("all_reduce", n_bytes=1e9, n_gpus=1, bandwidth=1e9, latency=1.0) == 0
    assert collective_seconds("all_reduce", n_bytes=0, n_gpus=4, bandwidth=1e9, latency=1.0) == 0


def test_small_messages_cost_latency() -> None:
    # NCCL all-reduce of 2 KB on H200: about 37 us
    seconds = collective_seconds("all_reduce", n_bytes=2048, n_gpus=8, bandwidth=360e9, latency=18.5e-6)
    assert seconds == pytest.approx(37e-6, rel=0.01)


@pytest.mark.parametrize(
    ("sharding", "micro", "step"),
    [
        ("none", 0.0, 0.0),
        ("ddp", 0.0, 2.0),
        ("zero1", 0.0, 2.0 + 3.0),
        ("zero2", 2.0, 3.0),
        ("zero3", 20.0 + 2.0, 0.0),
        ("fsdp2", 20.0 + 2.0, 0.0),
    ],
)
def test_bytes_of_each_sharding(sharding: str, micro: float, step: float) -> None:
    each = micro_batch_traffic(sharding, weights=10.0, gradients=2.0)  # type: ignore[arg-type]
    once = step_traffic(sharding, gradients=2.0, trained=3.0)  # type: ignore[arg-type]
    assert sum(n for _, n in each) == micro
    assert sum(n for _, n in once) == step


def test_what_is_sharded() -> None:
    plan = Plan(model="m", n_gpus=4, sharding="fsdp2")
    assert is_sharded(plan)
    assert not is_sharded(plan.replace(sharding="ddp"))
