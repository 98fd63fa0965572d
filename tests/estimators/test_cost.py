"""Steps, time, money, energy and disk of a run."""

import pytest

from estimators.answer import SpeedEstimate
from estimators.cost import (
    checkpoint_size,
    cost_usd,
    energy_kwh_at_most,
    run_length,
    seconds_for_tokens,
    steps_per_epoch,
)
from estimators.interval import Interval
from estimators.methods import get_method
from profiles.catalog import find_gpu, get_optimizer
from profiles.families import describe_model
from profiles.gpu import PriceRange
from profiles.plan import Plan
from profiles.source import Source

LLAMA_3B = describe_model(
    {
        "model_type": "llama",
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "llama-3.2-3b",
)
SPEED = SpeedEstimate(
    basis="analytic",
    items=(),
    step_seconds=Interval(low=1.0, expected=2.0, high=4.0),
    tokens_per_second=Interval(low=1000, expected=2000, high=4000),
    tokens_per_step=4000,
    model_flops_utilization=None,
)


def test_steps_of_an_epoch_round_up() -> None:
    plan = Plan(model="m", micro_batch_size=4, gradient_accumulation_steps=2)
    assert steps_per_epoch(plan, examples=80) == 10
    assert steps_per_epoch(plan, examples=81) == 11
    assert steps_per_epoch(plan, examples=1) == 1
    assert steps_per_epoch(plan.replace(n_gpus=2, sharding="ddp"), examples=80) == 5


def test_packing_needs_fewer_steps_by_the_mean_length() -> None:
    plan = Plan(model="m", packing=True, seq_len=2048, micro_batch_size=1)
    assert steps_per_epoch(plan, examples=1000, mean_len=256) == 125
    assert steps_per_epoch(plan, examples=1000, mean_len=9999) == 1000  # longer ones are cut


def test_run_length_counts_epochs_unless_steps_are_given() -> None:
    plan = Plan(model="m", micro_batch_size=4, num_epochs=3)
    run = run_length(plan, SPEED, examples=400)
    assert (run.steps, run.seconds.expected, run.tokens) == (300, 600.0, 1_200_000)
    assert run_length(plan.replace(max_steps=7), SPEED, examples=400).steps == 7


def test_time_for_tokens_turns_the_interval_round() -> None:
    seconds = seconds_for_tokens(SPEED, 8000)
    assert (seconds.low, seconds.expected, seconds.high) == (2.0, 4.0, 8.0)


def test_cost_of_an_own_price_and_of_a_range() -> None:
    hours = Interval(low=3600, expected=7200, high=14400)
    own = cost_usd(hours, n_gpus=2, price=1.5)
    assert (own.low, own.expected, own.high) == (3.0, 6.0, 12.0)
    seen = PriceRange(low=1.0, high=4.0, source=Source(url="u", date="2026-06-14"))
    ranged = cost_usd(hours, n_gpus=1, price=seen)
    assert (ranged.low, ranged.expected, ranged.high) == (1.0, 4.0, 16.0)


def test_energy_is_bounded_by_the_power_limit() -> None:
    seconds = Interval(low=3600, expected=3600, high=7200)
    t4 = find_gpu("t4")
    assert t4.tdp_w == 70
    assert energy_kwh_at_most(seconds, n_gpus=2, gpu=t4) == pytest.approx(2 * 2 * 0.070)
    assert energy_kwh_at_most(seconds, n_gpus=1, gpu=t4.replace(tdp_w=None)) is None


@pytest.mark.parametrize(
    ("method", "options", "itemsize", "published"),
    [
        # bytes of the saved files in huggingface/peft method_comparison/MetaMathQA/results
        ("lora", {"lora_rank": 32, "target_modules": ("q_proj", "v_proj")}, 4, 36_715_216),
        ("prefix", {"num_virtual_tokens": 200, "gradient_checkpointing": "none"}, 4, 45_875_328),
        ("prompt", {"num_virtual_tokens": 200}, 4, 2_457_728),
        ("full", {}, 2, 6_425_499_648),
    ],
)
def test_size_of_the_saved_weights(method: str, options: dict[str, object], itemsize: int, published: int) -> None:
    plan = Plan.model_validate({"model": "m", "method": method, **options})
    size = checkpoint_size(plan, LLAMA_3B, get_method(method), get_optimizer("adamw_torch"), trained_itemsize=itemsize)
    assert size.weights == pytest.approx(published, rel=0.001)
    assert size.resume == pytest.approx(3 * size.weights, rel=0.01)  # two states as large as the parameter
