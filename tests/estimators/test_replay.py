"""The replayed reserved memory: consistent with the analytic peak, and against published runs."""

from statistics import median

import pytest

from benchmarks.memory_scores import estimate_row
from benchmarks.model_configs import model_spec
from benchmarks.rows import load_rows
from estimators.allocator import LARGE_BUFFER, DeviceOutOfMemoryError
from estimators.memory import estimate_memory
from estimators.replay import estimate_memory_replayed, replay
from profiles.catalog import find_gpu
from profiles.gpu import Hardware
from profiles.plan import Plan

A100 = find_gpu("a100-80-sxm")


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full", "prompt", "adalora"])
def test_the_replay_allocates_what_the_phases_say(method: str, checkpointing: str) -> None:
    plan = Plan(model="m", method=method, gradient_checkpointing=checkpointing, micro_batch_size=2, seq_len=512)
    model = model_spec("llama-3.2-1b")
    found, predicted = replay(plan, model, A100), estimate_memory(plan, model, Hardware(gpu=A100)).allocated.expected
    assert found.allocated == pytest.approx(predicted, rel=0.03)
    assert found.reserved >= found.allocated


CASES = {
    "freeze": {"method": "freeze"},
    "freeze-llamafactory": {"method": "freeze", "platform": "llamafactory"},
    "llama_pro": {"method": "llama_pro", "platform": "llamafactory", "method_options": {"num_expand": 4}},
    "badam": {"method": "badam", "platform": "llamafactory"},
    "ia3": {"method": "ia3", "gradient_checkpointing": "none"},
    "prefix": {"method": "prefix", "gradient_checkpointing": "none"},
    "galore": {"method": "galore"},
    "int8": {"method": "lora", "quantization": "int8", "keep_outputs": True},
    "accumulated": {"method": "full", "gradient_accumulation_steps": 4},
    "accumulated-liger": {"method": "full", "gradient_accumulation_steps": 4, "platform": "llamafactory"},
    "zeroed": {"method": "full", "zero_grad_set_to_none": False},
    "unsloth": {"method": "qlora", "platform": "unsloth", "gradient_checkpointing": "unsloth"},
}


@pytest.mark.parametrize("case", CASES)
def test_so_it_does_for_every_way_to_run_a_layer(case: str) -> None:
    plan = Plan.model_validate({"model": "m", "micro_batch_size": 2, "seq_len": 1024, **CASES[case]})
    model = model_spec("llama-3.2-1b")
    found, predicted = replay(plan, model, A100), estimate_memory(plan, model, Hardware(gpu=A100)).allocated.expected
    assert found.allocated == pytest.approx(predicted, rel=0.03)


def test_expandable_segments_reserve_at_most_two_granules_more() -> None:
    plan = Plan(model="m", method="lora", attention="eager", micro_batch_size=2, seq_len=1024)
    model = model_spec("llama-3.2-1b")
    fixed, grown = (replay(plan.replace(expandable_segments=e), model, A100) for e in (False, True))
    assert grown.reserved <= fixed.reserved + 2 * LARGE_BUFFER  # mapped whole
    assert grown.allocated == pytest.approx(fixed.allocated, rel=1e-3)  # unsplit remainders count as allocated


def test_several_cards_keep_the_fitted_margin() -> None:
    plan = Plan(model="m", n_gpus=2, sharding="fsdp2", method="lora", seq_len=512)
    model, hardware = model_spec("llama-3.2-1b"), Hardware(gpu=A100, n_gpus=2)
    assert estimate_memory_replayed(plan, model, hardware) == estimate_memory(plan, model, hardware)


def test_ddp_replays_one_card_and_its_buckets() -> None:
    model, plan = model_spec("llama-3.2-1b"), Plan(model="m", method="full", quantization="bf16", seq_len=512)
    several = plan.replace(n_gpus=2, sharding="ddp")
    alone, together = replay(plan, model, A100), replay(several, model, A100)
    predicted = estimate_memory(several, model, Hardware(gpu=A100, n_gpus=2)).allocated.expected
    assert together.allocated == pytest.approx(predicted, rel=0.03)
    assert together.allocated - alone.allocated == pytest.approx(2 * model.parameters, rel=0.05)  # gradients in 16 bits
    estimate = estimate_memory_replayed(several, model, Hardware(gpu=A100, n_gpus=2))
    assert estimate.reserved.expected == pytest.approx(together.reserved, rel=1e-6)


def test_a_limit_makes_the_allocator_give_segments_back() -> None:
    plan = Plan(model="m", method="lora", gradient_checkpointing="none", micro_batch_size=2, seq_len=1024)
    model = model_spec("llama-3.2-1b")
    free = replay(plan, model, A100)
    limited = replay(plan, model, A100, limit=(free.allocated + free.reserved) // 2)
    assert limited.allocated == free.allocated
    assert limited.reserved < free.reserved
    with pytest.raises(DeviceOutOfMemoryError):
        replay(plan, model, A100, limit=free.allocated - 1)


@pytest.mark.slow
def test_reserved_memory_of_published_runs() -> None:
    errors: dict[str, list[float]] = {}
    for row in load_rows():
        measured = row.measured.get("reserved_bytes")
        known = row.plan is not None and row.quality == "A" and not row.memory_note and row.gpu_id and row.model_ref
        if row.source in ("peft", "canifinetune", "fitcheck") and known and measured:
            errors.setdefault(row.source, []).append(abs(estimate_row(row).reserved.expected / measured - 1))
    assert {source: len(found) for source, found in errors.items()} == {"peft": 44, "canifinetune": 15, "fitcheck": 59}
    assert median(errors["peft"]) < 0.015
    assert median(errors["canifinetune"]) < 0.005
    assert median(errors["fitcheck"]) < 0.02
