"""What a task adds: pairs, passes without gradients, a second model, sampling."""

import pytest

from estimators.answer import Estimate
from estimators.memory import estimate_memory
from estimators.plan_figures import Body, PlanFigures, ReferenceFigures, Spread
from estimators.throughput import estimate_speed
from profiles.catalog import find_gpu
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan

MODEL = describe_model(
    {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": False,
    },
    "small-llama",
)  # fmt: skip
HARDWARE = Hardware(gpu=find_gpu("a100-80-sxm"))
HEAD = 128256 * 2048 * 2  # bytes in bf16
TASKS = ("sft", "dpo", "orpo", "kto", "reward", "grpo", "classification")


def make_plan(**fields: object) -> Plan:
    values = {"model": "m", "seq_len": 1024, "micro_batch_size": 2, "gradient_accumulation_steps": 8}
    return Plan.model_validate({**values, "gpu": "a100-80-sxm", "attention": "sdpa", **fields})


def figures(**fields: object) -> Estimate:
    plan = make_plan(**fields)
    memory = estimate_memory(plan, MODEL, HARDWARE)
    return Estimate(memory=memory, speed=estimate_speed(plan, MODEL, HARDWARE))


def of(component: str, estimate: Estimate) -> float:
    return max(c.n_bytes for p in estimate.memory.phases for c in p.components if c.name == component)


def seconds(estimate: Estimate) -> float:
    assert estimate.speed is not None
    return estimate.speed.step_seconds.expected


def test_a_reference_is_a_second_model_only_where_no_adapter_can_be_switched_off() -> None:
    weights = of("base_weights", figures())
    for task in ("dpo", "kto"):
        assert of("base_weights", figures(task=task)) == weights
        assert of("base_weights", figures(task=task, method="full")) == pytest.approx(2 * weights)
        assert of("base_weights", figures(task=task, method="oft", platform="llamafactory")) == pytest.approx(
            2 * weights
        )
    assert of("base_weights", figures(task="orpo", method="full")) == weights
    assert of("base_weights", figures(task="reward")) == pytest.approx(weights - HEAD)


def test_a_pair_is_a_batch_of_two() -> None:
    pair, two = figures(task="dpo"), figures(micro_batch_size=4)
    assert of("saved_activations", pair) == of("saved_activations", two)
    assert pair.memory.allocated.expected == pytest.approx(two.memory.allocated.expected, rel=0.001)
    assert seconds(pair) > 1.2 * seconds(two)
    assert figures(task="kto").memory.allocated.expected == figures().memory.allocated.expected
    assert seconds(figures(task="kto")) > 1.6 * seconds(figures())  # three passes beside its own four


def test_all_logits_are_held_where_the_code_holds_them() -> None:
    logits = 4 * 1024 * 128256 * 4  # of two pairs, in fp32
    trl, factory = figures(task="dpo"), figures(task="dpo", platform="llamafactory")
    assert of("logits", trl) < logits
    assert 4 * logits <= of("logits", factory) < 4.1 * logits
    assert of("logits", figures(task="orpo", platform="llamafactory")) < 3.1 * logits
    assert of("logits", figures(task="orpo")) > 2 * logits


def test_sampling_takes_a_cache_for_all_completions_of_a_step_and_most_of_the_time() -> None:
    grpo = figures(task="grpo")
    keys_and_values = 2 * 16 * 8 * 64 * 2 * 16 * 1024  # 16 layers, 8 heads of 64, bf16, 16 sequences
    sampling = next(p for p in grpo.memory.phases if p.name == "sampling")
    cache = next(c for c in sampling.components if c.name == "kv_cache")
    assert cache.n_bytes in (keys_and_values, keys_and_values / 2)  # all of it, or the prompts' when they are read
    assert seconds(grpo) > 3 * seconds(figures())
    assert grpo.speed is not None
    assert grpo.speed.step_seconds.high > 4 * grpo.speed.step_seconds.low
    assert any("generate" in note for note in grpo.speed.assumptions)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("platform", ["hf", "llamafactory"])
def test_the_fast_figures_are_those_of_the_estimates(task: str, platform: str) -> None:
    draft = make_plan(task=task, platform=platform)
    body = Body(
        lora_rank=16, target_modules=("all-linear",), seq_len=1024, packing=False, gradient_checkpointing="full",
        attention="sdpa", loss_kernel=None,
    )  # fmt: skip
    spread = Spread(n_gpus=1, optimizer="adamw_torch_fused", sharding="none", offload=False)
    fast = PlanFigures(draft, MODEL, HARDWARE).pair(body, spread)
    slow = ReferenceFigures(draft, MODEL, HARDWARE).pair(body, spread)
    for micro, accumulation in ((1, 16), (2, 8), (4, 1)):
        assert fast.peak(micro, accumulation) == pytest.approx(slow.peak(micro, accumulation))
        assert fast.seconds_per_token(micro, accumulation) == pytest.approx(slow.seconds_per_token(micro, accumulation))
