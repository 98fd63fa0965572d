"""Unsloth in the simulated tier: its functions on fake tensors, and the analytic tier beside them."""

import pytest

from estimators.memory import estimate_memory
from estimators.simulate import memory_from_simulation, simulate
from estimators.simulate.job import Job
from estimators.simulate.run import ask
from estimators.unsloth_loss import loss_tile
from profiles.catalog import find_exact_model_row, find_gpu
from profiles.errors import AdviseError
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan
from profiles.units import MIB

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
    ("tokens", "tiled_from", "trains_head", "shape"),
    [
        (4096, 4096, False, (4096, 16_384, True)),  # large card, long batch: tiles of 256 MiB
        (2048, 4096, False, (512, 128_256, False)),  # large card: the least number of rows
        (2048, 0, False, (2048, 16_384, True)),  # small card: tiles of one split
        (65_536, 4096, True, (2048, 128_256, False)),  # a trained head: h / V of the rows, a power of two
    ],
)
def test_tiles_of_the_loss(tokens, tiled_from, trains_head, shape):
    """fused_linear.py's layout for Llama 3's vocabulary, worked out by hand."""
    tile = loss_tile(
        tokens=tokens, hidden_size=4096, vocab_size=128_256, tiled_from=tiled_from, trains_head=trains_head
    )
    assert (tile.rows, tile.columns, tile.tiled) == shape
    assert tile.n_bytes <= 1024 * MIB
