import random
from math import exp, log

import pytest

from estimators.fit import (
    CARD_PRIORS,
    CPU_PRIORS,
    FEWEST_STEPS,
    LEAST_RESIDUAL,
    LINK_PRIORS,
    STEP_NOISE,
    fit_calibration,
    fit_constants,
    observe_steps,
    residual_of,
    start_constants,
)
from estimators.kernel_time import kernel_seconds
from estimators.throughput import TIME_FACTOR, estimate_speed, step_on
from profiles.calibration import KEPT_REPEATS, TimedKernel, TimedStep
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.families import describe_model
from profiles.gpu import GpuSpec, Hardware
from profiles.measurement import Environment
from profiles.plan import Plan

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 1536,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8192,
    "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
CPU = GpuSpec(id="cpu", name="CPU, 2 cores", vendor="CPU", memory_gib=8, bf16=True, sm_count=2)
ENVIRONMENT = Environment(hardware="CPU, 2 cores", versions={"torch": "2.13.0"})
TRUE = {"cpu_tflops_per_core": 0.05, "cpu_bandwidth_gbps": 30.0, "launch_seconds": 2e-5, "loss": 1.6, "optimizer": 0.7}


def describe(plan: Plan):
    return describe_model(plan.model, "m")


def plan(layers: int = 2, **changes: object) -> Plan:
    fields = {
        "model": {**CONFIG, "num_hidden_layers": layers}, "quantization": "fp32", "gradient_checkpointing": "none",
        "seq_len": 128, "loss_kernel": "full", "padding_mask": False,
    }  # fmt: skip
    return Plan.model_validate({**fields, **changes})


PLANS = [
    plan(layers, seq_len=length, method=method)
    for layers in (2, 3)
    for length in (64, 128, 256)
    for method in ("lora", "full")
]
UNSEEN = [plan(12, seq_len=200), plan(12, method="full", micro_batch_size=4), plan(8, gradient_checkpointing="full")]
KERNELS = [
    *(("matmul", {"tokens": t, "n_in": 512, "n_out": n}) for t in (32, 512) for n in (512, 8192)),
    ("copy", {"n_bytes": 100_000_000}),
    ("launch", {"launches": 400}),
]


def true_seconds(plan: Plan, gpu: GpuSpec = CPU, true=TRUE) -> float:
    return step_on(plan, describe(plan), gpu, {**start_constants(), **true}).seconds


def timed(plans=PLANS, noise: float = 0.0, seed: int = 1) -> list[TimedStep]:
    rng = random.Random(seed)
    return [TimedStep(plan=p, seconds=true_seconds(p) * exp(rng.gauss(0, noise))) for p in plans]


def kernels() -> list[TimedKernel]:
    found = []
    for kind, shape in KERNELS:
        bare = TimedKernel(kind=kind, dtype="fp32", shape=shape, seconds=1.0)
        found.append(bare.replace(seconds=kernel_seconds(bare, CPU, {**start_constants(), **TRUE})))
    return found


def calibrate(steps, kernels=(), previous=None):
    return fit_calibration(
        calibration_id="c", date="2026-11-24", environment=ENVIRONMENT, gpu=CPU, kernels=kernels, steps=steps,
        describe=describe, previous=previous,
    )  # fmt: skip


def test_a_machine_unlike_the_default_is_found_and_longer_deeper_plans_follow() -> None:
    calibration = calibrate(timed(), kernels())
    hardware = Hardware(gpu=CPU, origin="cpu")
    for unseen in UNSEEN:
        truth = true_seconds(unseen)
        before = estimate_speed(unseen, describe(unseen), hardware).step_seconds.expected
        after = estimate_speed(unseen, describe(unseen), hardware, calibration=calibration)
        assert abs(log(before / truth)) > 0.3
        assert after.step_seconds.expected == pytest.approx(truth, rel=0.05)
        assert after.step_seconds.low < truth < after.step_seconds.high
    assert calibration.constants["cpu_tflops_per_core"].value == pytest.approx(0.05, rel=0.1)
    assert calibration.constants[TIME_FACTOR].n == len(PLANS)


@pytest.mark.thorough
def test_the_interval_holds_new_noisy_steps() -> None:
    """Ten machines with 6 % noise each: the margin holds about nine tenths of further steps."""
    inside = total = 0
    for seed in range(10):
        calibration = calibrate(timed(noise=0.06, seed=seed), kernels())
        margin = calibration.constants[TIME_FACTOR].residual
        constants = {**start_constants(), **{n: f.value for n, f in calibration.constants.items()}}
        for step in timed(noise=0.06, seed=100 + seed):
            predicted = step_on(step.plan, describe(step.plan), CPU, constants).seconds
            inside += abs(log(predicted / step.seconds)) <= margin
            total += 1
    assert total == 120
    assert 0.85 <= inside / total <= 0.99


def test_one_wild_step_does_not_spoil_the_rest() -> None:
    steps = timed()
    steps[3] = steps[3].replace(seconds=5 * steps[3].seconds)
    constants = {n: f.value for n, f in calibrate(steps, kernels()).constants.items()}
    for unseen in UNSEEN:
        found = step_on(unseen, describe(unseen), CPU, {**start_constants(), **constants}).seconds
        assert found == pytest.approx(true_seconds(unseen), rel=0.15)


@pytest.mark.thorough
def test_a_second_run_refines_and_repeats_are_bounded() -> None:
    first = calibrate(timed(PLANS[:6]), kernels())
    second = calibrate(timed(PLANS[4:]), previous=first)
    assert second.constants[TIME_FACTOR].n == 14  # two of the plans were timed twice
    assert second.kernels == first.kernels
    for _ in range(5):
        second = calibrate(timed(PLANS[4:]), previous=second)
    assert second.constants[TIME_FACTOR].n == 4 + 8 * KEPT_REPEATS


def test_too_few_steps_leave_the_interval_wide() -> None:
    calibration = calibrate(timed(PLANS[: FEWEST_STEPS - 1]), kernels())
    assert TIME_FACTOR not in calibration.constants
    speed = estimate_speed(PLANS[0], describe(PLANS[0]), Hardware(gpu=CPU, origin="cpu"), calibration=calibration)
    assert speed.calibration.startswith("rates calibrated on CPU, 2 cores")
    assert speed.step_seconds.high > 2 * speed.step_seconds.expected


def test_nothing_timed_is_an_error_and_not_a_calibration() -> None:
    with pytest.raises(AdviseError) as caught:
        calibrate([])
    assert caught.value.code == "nothing-to-fit"


def test_constants_that_nothing_speaks_of_stay_out() -> None:
    calibration = calibrate(timed([p for p in PLANS if p.method == "lora"]))
    assert "dequantize" not in calibration.constants
    assert "cpu_tflops_per_core" in calibration.constants


def test_three_steps_sharpen_a_card() -> None:
    """A card whose matmuls and host are off by a third either way, three lengths of one method measured."""
    card, true = find_gpu("a100-80g"), {"matmul": 0.6, "launch_seconds": 2e-5, "elementwise": 0.5}
    lengths = [plan(24, seq_len=n, quantization="bf16", micro_batch_size=8) for n in (256, 1024, 4096)]
    between = [p.replace(seq_len=n) for p in lengths[:1] for n in (512, 2048)]
    observed = observe_steps([(p, describe(p), true_seconds(p, card, true), STEP_NOISE) for p in lengths], card)
    constants = {**start_constants(), **fit_constants(observed, CARD_PRIORS).constants}
    for unseen in between:
        found = step_on(unseen, describe(unseen), card, constants).seconds
        assert found == pytest.approx(true_seconds(unseen, card, true), rel=0.04)


def test_priors_name_constants_that_the_model_has() -> None:
    assert set(CARD_PRIORS) | set(CPU_PRIORS) | set(LINK_PRIORS) <= set(start_constants())
    assert len(CARD_PRIORS) > 10


def test_residuals_have_a_floor_and_widen_for_few_steps() -> None:
    assert residual_of([0.0] * 10) == LEAST_RESIDUAL
    assert residual_of([0.1] * 4) == pytest.approx(0.15)
    assert residual_of([0.1] * 100) == pytest.approx(0.11)


def test_collectives_show_what_the_link_between_the_cards_really_carries() -> None:
    gpu = find_gpu("h100-sxm")
    true = {**start_constants(), "nvlink_share": 0.4, "link_latency": 6e-5}
    found = []
    for kind in ("all_reduce", "all_gather", "reduce_scatter"):
        for size in (2**28, 2**24, 2**20):
            bare = TimedKernel(kind=kind, dtype="bf16", shape={"n_bytes": size, "n_gpus": 8}, seconds=1.0)
            found.append(bare.replace(seconds=kernel_seconds(bare, gpu, true)))
    calibration = fit_calibration(
        calibration_id="x", date="2026-01-01", environment=ENVIRONMENT, gpu=gpu, kernels=found, steps=[],
        describe=describe,
    )  # fmt: skip
    assert set(calibration.constants) == {"nvlink_share", "link_latency"}
    assert calibration.constants["nvlink_share"].value == pytest.approx(0.4, rel=0.1)
    assert calibration.constants["link_latency"].value == pytest.approx(6e-5, rel=0.2)
