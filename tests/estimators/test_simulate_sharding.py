"""One rank's memory, simulated: FSDP2 by torch's own code, DDP and ZeRO, against itself and the analytic tier.

All jobs run in one child process that imports the libraries once and forks for each.
"""

from collections.abc import Callable

import pytest

from estimators.memory import estimate_memory
from estimators.simulate import Simulation, simulate
from estimators.simulate.job import Job
from profiles.catalog import find_gpu
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan

pytest.importorskip("torch")
pytestmark = pytest.mark.platform

SMALL = {
    "model_type": "llama", "vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 6,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
TIED = SMALL | {"model_type": "qwen2", "tie_word_embeddings": True}

CELLS = {
    "full": {"method": "full"},
    "full plain": {"method": "full", "gradient_checkpointing": "none"},
    "full tied": {"method": "full", "model": TIED},
    "accumulated": {"method": "full", "gradient_accumulation_steps": 4},
    "lora": {"method": "lora"},
    "lora plain": {"method": "lora", "gradient_checkpointing": "none"},
    "lora tied": {"method": "lora", "model": TIED},
    "qlora": {"method": "qlora"},
    "qlora plain": {"method": "qlora", "gradient_checkpointing": "none"},
    "offloaded": {"method": "full", "offload_parameters": True, "offload_optimizer": True},
    "ddp full": {"method": "full", "sharding": "ddp"},
    "ddp lora": {"method": "lora", "sharding": "ddp"},
    "zero1": {"method": "full", "sharding": "zero1"},
    "zero2": {"method": "full", "sharding": "zero2"},
    "zero2 lora": {"method": "lora", "sharding": "zero2"},
    "zero2 offloaded": {"method": "full", "sharding": "zero2", "offload_optimizer": True},
}  # fmt: skip
WHOLE = ("full", "lora", "qlora plain", "accumulated", "ddp full")
DOUBLED = ("full", "lora", "qlora", "zero1", "zero2")
ALLOWED = {"high": 0.05, "low": -0.03}  # of the analytic estimate against the simulated one


def job(cell: str, *, layers: str = "extrapolate", n_gpus: int = 2) -> Job:
    options = {"micro_batch_size": 1, "seq_len": 512, "sharding": "fsdp2"} | CELLS[cell]
    config = options.pop("model", SMALL)
    return Job(
        plan=Plan.model_validate({"model": "test", "n_gpus": n_gpus} | options),
        model=describe_model(dict(config), "test"),  # type: ignore[call-overload]
        hardware=Hardware(gpu=find_gpu("a100-80gb")),
        layers=layers,
    )


JOBS = {
    **{name: job(name) for name in CELLS},
    **{f"whole {name}": job(name, layers="whole") for name in WHOLE},
    **{f"doubled {name}": job(name, n_gpus=4) for name in DOUBLED},
    "zero3": job("full").model_copy(update={"plan": job("full").plan.replace(sharding="zero3")}),
}


@pytest.fixture(scope="module")
def runs(simulate_jobs: Callable[..., dict[str, Simulation | str]]) -> dict[str, Simulation | str]:
    return simulate_jobs(JOBS)


def ran(runs: dict[str, Simulation | str], name: str) -> Simulation:
    found = runs[name]
    assert isinstance(found, Simulation), found
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_repeated_layers_equal_traced_ones(runs: dict[str, Simulation | str], name: str) -> None:
    whole, stretched = ran(runs, f"whole {name}"), ran(runs, name)
    assert stretched.layers_traced < stretched.layers == whole.layers_traced
    for one, other in zip(whole.phases, stretched.phases, strict=True):
        assert one.name == other.name
        # Loading's order decides which cached block serves a shard; a block's rest under 1 MiB is not split off.
        assert one.allocated == pytest.approx(other.allocated, rel=0.01)


def test_a_fresh_process_leaves_out_nothing_that_it_needs() -> None:
    """Elsewhere jobs are forked from a process that has imported everything; a user's child has not."""
    run = JOBS["lora"]
    assert simulate(run.plan, run.model, run.hardware).layers_traced == 4


@pytest.mark.parametrize("name", DOUBLED)
def test_twice_the_cards_hold_half_the_states(runs: dict[str, Simulation | str], name: str) -> None:
    two, four = ran(runs, name), ran(runs, f"doubled {name}")
    assert component(four, "optimizer_states") == pytest.approx(component(two, "optimizer_states") / 2, rel=0.02)
    assert four.peak_allocated < two.peak_allocated


@pytest.mark.parametrize("name", CELLS)
def test_formulas_agree_with_the_run(runs: dict[str, Simulation | str], name: str) -> None:
    found, given = ran(runs, name), JOBS[name]
    expected = estimate_memory(given.plan, given.model, given.hardware).allocated.expected
    error = expected / found.peak_allocated - 1
    assert ALLOWED["low"] <= error <= ALLOWED["high"], f"{error:+.1%}"


def test_gradients_wait_whole_between_micro_batches(runs: dict[str, Simulation | str]) -> None:
    once, often = ran(runs, "full"), ran(runs, "accumulated")
    whole = 2 * once.trainable_parameters  # bf16
    assert often.stages["forward"] - once.stages["forward"] > 0.9 * whole


def test_ddp_keeps_gradients_in_buckets(runs: dict[str, Simulation | str]) -> None:
    found = ran(runs, "ddp full")
    assert component(found, "gathered") == pytest.approx(found.trainable_parameters * 2, rel=0.01)


def test_zero3_is_refused_with_a_reason(runs: dict[str, Simulation | str]) -> None:
    assert "ZeRO-3" in str(runs["zero3"])


def component(found: Simulation, name: str) -> float:
    peak = next(p for p in found.phases if p.name == "optimizer_step")
    return sum(c.n_bytes for c in peak.components if c.name == name)
