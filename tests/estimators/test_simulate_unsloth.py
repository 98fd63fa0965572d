"""Unsloth in the simulated tier: its functions on fake tensors, and the analytic tier beside them."""

import pytest

from estimators.memory import estimate_memory
from estimators.simulate import simulate
from estimators.simulate.estimate import memory_from_simulation
from estimators.simulate.job import Job
from estimators.simulate.run import ask
from estimators.unsloth_loss import chunk_rows, loss_budget
from profiles.catalog import find_exact_model_row, find_gpu
from profiles.errors import AdviseError
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan
from profiles.units import GIB

LAYERS = 6
A100 = Hardware(gpu=find_gpu("a100-80-sxm"))


def spec(name):
    config = dict(find_exact_model_row(name).config) | {"num_hidden_layers": LAYERS}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:LAYERS]
    return describe_model(config, name)


def plan(**fields):
    defaults = {
        "model": "m", "platform": "unsloth", "optimizer": "adamw_8bit", "gradient_checkpointing": "unsloth",
        "micro_batch_size": 2, "seq_len": 1024,
    }  # fmt: skip
    return Plan.model_validate(defaults | fields)


# both tiers within 2 %: families, methods, ranks, lengths, checkpointing; three models that Unsloth has no layers for
CELLS = [
    ("meta-llama/Llama-3.1-8B", {"method": "qlora", "seq_len": 2048, "lora_rank": 64}),
    ("meta-llama/Llama-3.1-8B", {"gradient_checkpointing": "full", "lora_rank": 8}),
    ("meta-llama/Llama-3.1-8B", {"method": "qlora", "gradient_checkpointing": "none", "seq_len": 512}),
    ("meta-llama/Llama-3.2-1B", {"packing": True, "target_modules": ("q_proj", "v_proj")}),
    ("meta-llama/Llama-3.2-1B", {"method": "full"}),
    ("mistralai/Mistral-7B-v0.1", {"lora_dropout": 0.1}),
    ("Qwen/Qwen2.5-7B", {"method": "qlora", "lora_rank": 64}),
    ("Qwen/Qwen3-0.6B", {"gradient_checkpointing": "none"}),
    ("google/gemma-2b", {"method": "qlora"}),
    ("google/gemma-2-2b", {}),
    ("allenai/OLMo-2-0425-1B", {"method": "qlora"}),
    ("Qwen/Qwen1.5-MoE-A2.7B", {}),
]


@pytest.mark.platform
@pytest.mark.parametrize(("name", "fields"), CELLS, ids=[f"{n.split('/')[1]}-{i}" for i, (n, _) in enumerate(CELLS)])
def test_both_tiers_agree_on_unsloth(name, fields):
    """Tape and fake tensors are two transcriptions of one source."""
    model, wanted = spec(name), plan(**fields)
    simulated = simulate(wanted, model, A100).peak_allocated
    assert estimate_memory(wanted, model, A100).allocated.expected == pytest.approx(simulated, rel=0.02)


@pytest.mark.platform
def test_offloaded_checkpoints_leave_two_buffers_and_two_inputs():
    """Of L layers' inputs four stay on the card, whatever L: the first is a leaf, which the graph holds."""
    model = spec("meta-llama/Llama-3.2-1B")
    one_input = 2 * 1024 * 2 * 2048
    held = {}
    for checkpointing in ("full", "unsloth"):
        found = simulate(plan(gradient_checkpointing=checkpointing), model, A100)
        loss = next(p for p in found.phases if p.name == "loss")
        held[checkpointing] = sum(c.n_bytes for c in loss.components if c.name == "saved_activations")
    assert held["full"] - held["unsloth"] == pytest.approx((LAYERS - 4) * one_input, abs=one_input / 4)


@pytest.mark.platform
def test_one_dense_weight_stays_and_none_under_dropout():
    """The buffer that all layers share is as large as the MLP's weights; dropout's path has none."""
    model = spec("meta-llama/Llama-3.2-1B")
    shared = {}
    for dropout in (0.0, 0.1):
        found = simulate(plan(method="qlora", lora_dropout=dropout), model, A100)
        step = next(p for p in found.phases if p.name == "optimizer_step")
        shared[dropout] = sum(c.n_bytes for c in step.components if c.name == "dequantized_weights")
    assert shared == {0.0: 2 * 2048 * 8192, 0.1: 0}


@pytest.mark.platform
def test_the_answer_says_that_kernels_are_modelled():
    """What is not traced is named."""
    model = spec("meta-llama/Llama-3.2-1B")
    estimate = memory_from_simulation(simulate(plan(), model, A100), plan(), model, A100)
    assert any("modelled from the source" in text for text in estimate.assumptions)


def test_offloaded_checkpoints_are_unsloths_only():
    """Other platforms have no such checkpointing."""
    job = Job(plan=plan(platform="hf"), model=spec("meta-llama/Llama-3.2-1B"), hardware=A100)
    with pytest.raises(AdviseError, match="exist in Unsloth only"):
        ask(job)


@pytest.mark.parametrize(
    ("tokens", "equal", "rows"),
    [
        (1024, True, 1024),  # 1.96 GiB by its own reckoning: not cut
        (4096, True, 1024),  # 7.8 GiB of 4: four chunks
        (8192, True, 2048),
        (16_384, True, 2048),  # eight: only multiples of four
        (4096, False, 2091),  # a shorter batch that is just not cut
    ],
)
def test_chunks_of_the_loss(tokens, equal, rows):
    """cross_entropy_loss.py's chunks for Llama 3's vocabulary, as an H200 made them."""
    fixed = 2.0 * tokens * 2048
    found = chunk_rows(tokens=tokens, vocab_size=128_256, budget=loss_budget(140 * GIB), fixed=fixed, equal=equal)
    assert found == pytest.approx(rows, abs=0 if equal else 20)


def test_a_small_card_cuts_more():
    """Half of what is free, at most 4 GiB."""
    assert loss_budget(6 * GIB) == 3 * GIB
    assert chunk_rows(tokens=4096, vocab_size=128_256, budget=loss_budget(2 * GIB), fixed=0.0, equal=True) == 512
