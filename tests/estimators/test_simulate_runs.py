"""The simulated tier on the real libraries: what a run must hold, against itself, the records, and published runs.

All jobs run in one child process that imports the libraries once and forks for each.
"""

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from estimators.memory import estimate_memory
from estimators.methods import methods
from estimators.simulate import Simulation, simulate
from estimators.simulate.job import Job
from estimators.simulate.speed import speed_from_simulation
from estimators.throughput import estimate_speed
from profiles.catalog import find_gpu
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.units import GIB, MIB

pytest.importorskip("torch")
pytestmark = pytest.mark.platform

TINY = {
    "model_type": "llama", "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN = TINY | {"model_type": "qwen2", "tie_word_embeddings": True}
LLAMA_3B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
TINYLLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip

NEOX = {
    "model_type": "gpt_neox", "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 4, "max_position_embeddings": 2048, "rotary_pct": 0.25, "use_parallel_residual": True,
    "hidden_act": "gelu", "tie_word_embeddings": False,
}  # fmt: skip
BASE = {"method": "lora", "micro_batch_size": 2, "seq_len": 512}
CHANGES = {
    "bitfit": {"model": QWEN}, "prefix": {"gradient_checkpointing": "none"}, "badam": {"platform": "llamafactory"},
    "llama_pro": {"platform": "llamafactory", "method_options": {"num_expand": 4}},
}  # fmt: skip
PACKAGES = {"galore": "galore_torch", "apollo": "apollo_torch", "badam": "badam"}
METHODS = {
    name: CHANGES.get(name, {}) for name in methods() if name not in PACKAGES or find_spec(PACKAGES[name]) is not None
}
EIGHT = ("full", "lora", "qlora", "adalora", "bitfit", "prompt", "ptuning", "prefix")
STRETCHED = {
    "lora": {}, "full-plain": {"method": "full", "gradient_checkpointing": "none"},
    "qlora-plain": {"method": "qlora", "gradient_checkpointing": "none", "optimizer": "adamw_torch"},
    "llamafactory": {"platform": "llamafactory", "method": "lora"},
    "unsloth-neox": {
        "platform": "unsloth", "model": NEOX, "method": "dora", "quantization": "nf4",
        "gradient_checkpointing": "unsloth",
    },
}  # fmt: skip
VARIANTS = {
    "plain": {"gradient_checkpointing": "none"},
    "longer": {"seq_len": 1024},
    "wider": {"micro_batch_size": 4},
    "rank": {"lora_rank": 64},
    "fused-logits": {"model": TINY | {"vocab_size": 100_000}},
    "full-logits": {"model": TINY | {"vocab_size": 100_000}, "loss_kernel": "full"},
    "foreach": {"method": "full", "optimizer": "adamw_torch"},
    "fused": {"method": "full", "optimizer": "adamw_torch_fused"},
    "8bit": {"method": "full", "optimizer": "adamw_8bit"},
    "paged": {"method": "full", "optimizer": "paged_adamw_8bit"},
    "sgd": {"method": "full", "optimizer": "sgd"},
    "kept": {"method": "full", "optimizer": "sgd", "zero_grad_set_to_none": False},
    "accumulated": {"gradient_accumulation_steps": 8},
    "eager": {"attention": "eager", "gradient_checkpointing": "none"},
    "sdpa": {"attention": "sdpa", "gradient_checkpointing": "none"},
    "dora": {"method_options": {"peft_type": "LORA", "use_dora": True, "r": 16, "target_modules": "all-linear"}},
    "unknown-to-us": {"method_options": {"peft_type": "HRA", "target_modules": "all-linear"}},
    "int8": {"quantization": "int8"},
    "not-in-peft": {"method_options": {"peft_type": "NO_SUCH"}},
    "breaks": {"method_options": {"peft_type": "LORA", "target_modules": ["no_such_module"]}},
}
FALCON = {
    "model_type": "falcon", "vocab_size": 2000, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False, "alibi": False,
}  # fmt: skip
GPT_NEO = {
    "model_type": "gpt_neo", "vocab_size": 2000, "hidden_size": 256, "num_layers": 4, "num_heads": 4,
    "attention_types": [[["global", "local"], 2]], "window_size": 64, "max_position_embeddings": 1024,
}  # fmt: skip
MIXTRAL = TINY | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
PHI = TINY | {"model_type": "phi3", "pad_token_id": 0}
LIGER = {"platform": "llamafactory", "loss_kernel": "chunked", "micro_batch_size": 8}
# What torch, PEFT or FakeTensorMode make harder than a Llama in bf16, or what other code runs in its layers
HARD = {
    "liger": LIGER,
    "liger, nothing checkpointed": LIGER | {"gradient_checkpointing": "none"},
    "liger, everything trained": LIGER | {"method": "full", "gradient_checkpointing": "none"},
    "liger, fused projections": LIGER | {"model": PHI, "gradient_checkpointing": "none"},
    "reentrant checkpoints": {"reentrant": True, "micro_batch_size": 8},
    "4-bit DoRA": {"method": "dora", "quantization": "nf4-dq"},
    "int8 DoRA": {"method": "dora", "quantization": "int8"},
    "lists made tensors while recomputing": {"model": FALCON},
    "numbers made tensors while recomputing": {"model": GPT_NEO},
    "experts in fp16": {"model": MIXTRAL, "method": "full", "quantization": "fp16", "platform": "llamafactory"},
}


def job(config: dict[str, object] = TINY, *, gpu: str = "l40s", layers: str = "extrapolate", **plan: object) -> Job:
    config = plan.pop("model", config)  # type: ignore[assignment]
    batches = plan.pop("batches", ())
    more = {k: plan.pop(k) for k in ("zero_grad", "empty_cache_every", "release_outputs") if k in plan}
    return Job(
        plan=Plan.model_validate({"model": "test"} | BASE | plan),
        model=describe_model(dict(config), "test"),  # type: ignore[call-overload]
        hardware=Hardware(gpu=find_gpu(gpu)),
        layers=layers,
        batches=batches,
        **more,
    )


# Published: PEFT's MetaMathQA benchmark (L40S, max_memory_reserved 20.762 GiB), its loop and batches as in
# benchmarks/simulated.py; fitcheck-llm 0.3.1 (T4, max_memory_allocated 3.2109 GiB, 2 x 1024, sdpa).
PUBLISHED = {
    "peft-lora": job(
        LLAMA_3B, micro_batch_size=4, seq_len=648, lora_rank=32, target_modules=("q_proj", "v_proj"),
        mixed_precision=False, keep_outputs=True, use_cache=True, padding_mask=True, gradient_checkpointing="none",
        loss_kernel="full", optimizer="adamw_torch", batches=((4, 216), (4, 648)), zero_grad="start",
        empty_cache_every=1,
    ),
    "fitcheck-lora": job(
        TINYLLAMA, gpu="t4", micro_batch_size=2, seq_len=1024, quantization="fp16", lora_rank=32,
        target_modules=("q_proj", "k_proj", "v_proj", "o_proj"), mixed_precision=False, compute_dtype="fp16",
        adapter_dtype="fp32", max_grad_norm=0.0, keep_outputs=True, loss_kernel="full", optimizer="adamw_torch",
        attention="eager", release_outputs=True,
    ),
}  # fmt: skip

JOBS: dict[str, Job] = {
    **{f"method {m}": job(method=m, **changes) for m, changes in METHODS.items()},
    **{f"{how} {n}": job(layers=how, **c) for n, c in STRETCHED.items() for how in ("whole", "extrapolate")},
    **{f"variant {n}": job(**changes) for n, changes in VARIANTS.items()},
    **{f"hard {n}": job(**changes) for n, changes in HARD.items()},
    **{f"published {n}": j for n, j in PUBLISHED.items()},
}


FAST = frozenset(
    {"whole lora", "extrapolate lora", "variant breaks", "variant plain", "published peft-lora"}
    | {f"method {m}" for m in EIGHT}
)


@pytest.fixture(scope="module")
def fast_answers(simulate_jobs: Callable[..., dict[str, Simulation | str]]) -> dict[str, Simulation | str]:
    return simulate_jobs({n: j for n, j in JOBS.items() if n in FAST})


@pytest.fixture(scope="module")
def slow_answers(simulate_jobs: Callable[..., dict[str, Simulation | str]]) -> dict[str, Simulation | str]:
    return simulate_jobs({n: j for n, j in JOBS.items() if n not in FAST})


@pytest.fixture
def answer(request):
    """A run's simulation, or its error message, by name."""
    return lambda name: request.getfixturevalue("fast_answers" if name in FAST else "slow_answers")[name]


@pytest.fixture
def found(answer):
    """A run's simulation by name; its failure is the test's."""

    def look_up(name: str) -> Simulation:
        simulation = answer(name)
        assert not isinstance(simulation, str), simulation
        return simulation

    return look_up


slow = pytest.mark.slow


@pytest.mark.parametrize("name", ["hard 4-bit DoRA", "hard experts in fp16", "hard liger", "method prefix"])
def test_a_fresh_process_leaves_out_nothing_that_it_needs(name):
    """Other jobs are forked from a process that has imported everything; a user's child has not. (There alone did it
    show that DoRA, which copies 4-bit layers, copied FakeTensorMode with them.)"""
    run = JOBS[name]
    assert simulate(run.plan, run.model, run.hardware).peak_allocated > 0


def components(simulation: Simulation, phase: str) -> dict[str, float]:
    return {c.name: c.n_bytes for p in simulation.phases if p.name == phase for c in p.components}


@pytest.mark.parametrize("method", [m if m in EIGHT else pytest.param(m, marks=slow) for m in METHODS])
def test_what_a_method_trains_is_what_the_real_code_trains(found, method):
    run: Job = JOBS[f"method {method}"]
    trainable = methods()[method].trainable_parameters(run.model, run.plan)
    assert found(f"method {method}").trainable_parameters == trainable
    assert len(METHODS) >= 21


@pytest.mark.parametrize("name", ["lora", *(pytest.param(n, marks=slow) for n in STRETCHED if n != "lora")])
def test_stretched_and_whole_agree(found, name):
    whole, stretched = found(f"whole {name}"), found(f"extrapolate {name}")
    assert stretched.layers_traced < whole.layers_traced == whole.layers == 8
    assert [p.name for p in stretched.phases] == [p.name for p in whole.phases]
    for a, b in zip(stretched.phases, whole.phases, strict=True):
        assert a.allocated == pytest.approx(b.allocated, rel=0.002), a.name
    assert stretched.peak_reserved == pytest.approx(whole.peak_reserved, rel=0.03)
    assert stretched.trainable_parameters == whole.trainable_parameters


def test_states_follow_the_parameters(found):
    """Sizes known by definition: bf16 base, fp32 adapters, gradients, two fp32 moments (rounding to 512 B aside)."""
    spec: ModelSpec = JOBS["method lora"].model
    held = components(found("method lora"), "optimizer_step")
    trainable = found("method lora").trainable_parameters
    assert held["base_weights"] == pytest.approx(2 * spec.parameters, rel=0.01)
    assert held["adapter_weights"] == pytest.approx(4 * trainable, rel=0.02)
    assert held["gradients"] == pytest.approx(4 * trainable, rel=0.02)
    assert held["optimizer_states"] == pytest.approx(8 * trainable, rel=0.15)  # and a step count for each tensor


def test_every_phase_is_the_sum_of_its_components(found):
    for name in ("method full", "method qlora", "variant plain"):
        for phase in found(name).phases:
            assert sum(c.n_bytes for c in phase.components) == phase.allocated


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("method lora", "variant plain"),
        pytest.param("method lora", "variant longer", marks=slow),
        pytest.param("method lora", "variant wider", marks=slow),
        pytest.param("method lora", "variant rank", marks=slow),
        pytest.param("variant fused-logits", "variant full-logits", marks=slow),
        ("method lora", "method full"),
        ("method qlora", "method lora"),
        pytest.param("variant sdpa", "variant eager", marks=slow),
        pytest.param("variant sgd", "variant fused", marks=slow),
        pytest.param("variant sgd", "variant kept", marks=slow),
        pytest.param("variant paged", "variant 8bit", marks=slow),
        pytest.param("variant 8bit", "variant fused", marks=slow),
        pytest.param("method lora", "variant dora", marks=slow),
    ],
)
def test_more_of_it_takes_more(found, less, more):
    assert found(less).peak_allocated < found(more).peak_allocated
    assert found(less).peak_reserved <= found(more).peak_reserved


@slow
def test_the_foreach_optimizer_needs_a_temporary_and_the_fused_none(found):
    parameters = JOBS["variant foreach"].model.parameters
    foreach = components(found("variant foreach"), "optimizer_step").get("optimizer_temporary", 0)
    fused = components(found("variant fused"), "optimizer_step").get("optimizer_temporary", 0)
    assert foreach == pytest.approx(2 * parameters, rel=0.05)
    assert fused < 0.05 * parameters


@slow
def test_accumulation_holds_gradients_through_the_backward(found):
    once, often = found("method lora"), found("variant accumulated")
    extra = components(often, "layer_backward")["gradients"] - components(once, "layer_backward").get("gradients", 0)
    assert extra == pytest.approx(4 * once.trainable_parameters, rel=0.2)


@slow
def test_methods_that_only_peft_knows_run_too(found):
    for name in ("variant unknown-to-us", "variant dora", "variant int8"):
        assert found(name).peak_allocated > found(name).after_load > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD)
def test_what_is_hard_to_trace_is_traced_and_as_estimated(found, name):
    """Each failed under trace once; both tiers answer, and nearly the same."""
    asked = JOBS[f"hard {name}"]
    expected = estimate_memory(asked.plan, asked.model, asked.hardware).allocated.expected
    assert found(f"hard {name}").peak_allocated == pytest.approx(expected, rel=0.03)


def test_a_failure_says_where_it_failed(answer):
    assert "failed in stage load" in answer("variant breaks")
    assert "no_such_module" in answer("variant breaks")


@slow
def test_an_unknown_peft_method_is_named(answer):
    assert "no method 'NO_SUCH'" in answer("variant not-in-peft")


def test_published_lora_on_l40s(found):
    assert found("published peft-lora").peak_reserved == pytest.approx(20.762 * GIB, rel=0.02)


@slow
def test_published_lora_on_t4(found):
    assert found("published fitcheck-lora").peak_allocated == pytest.approx(3518 * MIB, rel=0.003)


def test_time_and_memory_of_the_simulator(found):
    assert found("published peft-lora").rss < GIB
    assert {len(found(n).timeline) > 100 for n in FAST if n.startswith("method")} == {True}


def test_llamafactory_checkpoints_only_what_is_trained():
    import functools

    import torch

    from estimators.simulate.build import trained_only

    def forward(layer, x):
        return layer.weight * x

    checkpointed = trained_only(lambda function, *args, **_: ("checkpointed", function(*args)))
    for trained in (False, True):
        layer, x = torch.nn.Linear(2, 2).requires_grad_(trained), torch.ones(2)
        out = checkpointed(functools.partial(forward, layer), x)
        assert isinstance(out, tuple) is trained
        assert x.requires_grad is trained


def flops(simulation: Simulation, *kinds: str) -> float:
    return sum(o.n * o.flops for o in simulation.operations if o.kind in kinds)


@pytest.mark.parametrize("method", EIGHT)
def test_the_products_that_ran_are_those_of_the_formulas(found, method) -> None:
    """Both tiers count the FLOPs of a step; P-tuning's own small network is in the traced one only."""
    asked = JOBS[f"method {method}"]
    speed = estimate_speed(asked.plan, asked.model, asked.hardware)
    counted = sum(item.flops for item in speed.items if item.name in ("matmul", "adapters", "head"))
    assert flops(found(f"method {method}"), "matmul") == pytest.approx(counted, rel=0.02)


def test_operations_of_repeated_layers_are_those_of_all_layers(found) -> None:
    whole, stretched = found("whole lora"), found("extrapolate lora")
    assert flops(whole, "matmul", "flash", "efficient") == flops(stretched, "matmul", "flash", "efficient")
    assert sum(o.n for o in whole.operations) == sum(o.n for o in stretched.operations)
    moved = [sum(o.n * o.n_bytes for o in found.operations) for found in (whole, stretched)]
    assert moved[0] == pytest.approx(moved[1], rel=1e-4)  # a list's operations keep a few bytes a tensor on the host


def test_operations_priced_one_by_one_take_as_long_as_the_formulas_say(found) -> None:
    asked = JOBS["published peft-lora"]
    speed = speed_from_simulation(found("published peft-lora"), asked.plan, asked.model, asked.hardware)
    formulas = estimate_speed(asked.plan, asked.model, asked.hardware)
    assert speed.basis == "simulated"
    assert speed.step_seconds.expected == pytest.approx(formulas.step_seconds.expected, rel=0.15)
    assert speed.step_seconds.expected == pytest.approx(sum(i.seconds for i in speed.items))


def test_speed_is_left_to_the_formulas_where_not_all_is_traced(found) -> None:
    simulation, asked = found("variant plain"), JOBS["variant plain"]
    for plan in (asked.plan.replace(platform="unsloth"), asked.plan.replace(n_gpus=2, sharding="ddp")):
        assert speed_from_simulation(simulation, plan, asked.model, asked.hardware) is None
