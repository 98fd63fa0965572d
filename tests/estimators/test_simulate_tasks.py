"""Preference training and reward models: the formulas against TRL's own trainers, traced on fake tensors."""

from collections.abc import Callable

import pytest

from estimators.memory import estimate_memory
from estimators.simulate import Simulation
from estimators.simulate.job import Job
from profiles.catalog import find_gpu
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan

pytest.importorskip("torch")
pytestmark = [pytest.mark.platform, pytest.mark.slow]

MODEL = describe_model(
    {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "dtype": "bfloat16",
    },
    "small",
)  # fmt: skip
HARDWARE = Hardware(gpu=find_gpu("a100-80-sxm"))
WAYS = {
    "lora": {"method": "lora"},
    "full": {"method": "full"},
    "full-plain": {"method": "full", "gradient_checkpointing": "none"},
}
PLANS = {
    f"{platform} {task} {way}": Plan.model_validate(
        {
            "model": "small", "platform": platform, "task": task, "micro_batch_size": 4, "seq_len": 512,
            "attention": "sdpa", **values,
        }
    )
    for platform, tasks in (("hf", ("dpo", "kto", "orpo", "reward")), ("llamafactory", ("dpo", "kto", "orpo")))
    for task in tasks
    for way, values in WAYS.items()
}  # fmt: skip
LARGEST_ERROR = 0.03


@pytest.fixture(scope="module")
def found(simulate_jobs: Callable[..., dict[str, Simulation | str]]) -> dict[str, Simulation | str]:
    jobs = {name: Job(plan=plan, model=MODEL, hardware=HARDWARE) for name, plan in PLANS.items()}
    return simulate_jobs(jobs)


def test_all_tasks_were_traced(found: dict[str, Simulation | str]) -> None:
    assert len(found) == 21
    assert not [answer for answer in found.values() if isinstance(answer, str)]


@pytest.mark.parametrize("name", PLANS)
def test_the_formulas_follow_the_real_code(name: str, found: dict[str, Simulation | str]) -> None:
    traced = found[name]
    assert isinstance(traced, Simulation)
    expected = estimate_memory(PLANS[name], MODEL, HARDWARE).allocated.expected
    assert expected == pytest.approx(traced.peak_allocated, rel=LARGEST_ERROR)
