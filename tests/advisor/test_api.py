"""The Python API on the real estimators: the three calls, and what they refuse."""

import pytest

from advisor.api import advise, estimate, facts
from advisor.hardware import resolve_hardware
from advisor.recommendation import Recommendation
from profiles.errors import AdviseError, UnsupportedError

REQUEST = {"model": "llama-8b", "vram_gib": 24, "offline": True}


def test_three_calls_agree():
    known = facts(REQUEST)
    answer = advise(REQUEST, known=known)
    assert answer == advise(REQUEST)
    again = estimate(answer.best.plan)
    assert again.memory.allocated == answer.best.memory.allocated
    assert again.memory.phases == answer.best.memory.phases


def test_a_recommendation_round_trips():
    answer = advise({**REQUEST, "examples": 1000, "mean_len": 200, "usd_per_hour": 1})
    assert Recommendation.model_validate_json(answer.model_dump_json()) == answer


@pytest.mark.parametrize("gib", [6, 8, 12, 16, 24, 48, 80])
def test_an_8b_model_on_usual_cards(gib):
    """Published practice: QLoRA from about 8 GB, LoRA in 16 bits from 24 GB; full fine-tuning needs more than one."""
    answer = advise({**REQUEST, "vram_gib": gib})
    if answer.best is not None:  # the screening's fitted share of reserved memory against two replayed steps
        assert estimate(answer.best.plan, hardware=resolve_hardware(None, gib, None)).memory.verdict == "fits"
    if gib <= 6:
        assert answer.best is None or answer.best.plan.method == "qlora"
    elif gib <= 16:
        assert answer.best.plan.method == "qlora"
    else:
        assert answer.best.plan.method == "lora"
        assert answer.best.plan.quantization == "bf16"


@pytest.mark.thorough
@pytest.mark.parametrize("model", ["gpt2", "bert-base", "qwen2.5-0.5b", "mixtral-8x7b", "llama-70b", "gpt-oss-20b"])
@pytest.mark.parametrize("gpu", ["t4", "rtx3060", "rtx4090", "h100", "2x a100-80g", "cpu"])
def test_any_model_on_any_card_has_an_answer(model, gpu):
    answer = advise({"model": model, "gpu": gpu, "offline": True})
    cells = len(answer.dropped) + len(answer.runner_ups) + (answer.best is not None)
    assert cells <= 168
    if answer.best is not None:
        assert answer.best.memory.verdict == "fits"
        assert answer.reasons
    else:
        assert answer.way_out


def test_several_cards_share_the_batch():
    plan = advise({"model": "llama-8b", "gpu": "2x a100-80g", "offline": True}).best.plan
    assert plan.n_gpus == 2
    assert plan.sharding != "none"
    assert plan.global_batch_size == 16


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"model": "llama-8b", "gpu": "t4", "method": "bitfit"}, "no bias"),
        ({"model": "llama-8b", "gpu": "t4", "method": "full", "quantization": "nf4"}, "cannot be trained"),
        ({"model": "bert-base", "gpu": "t4", "method": "prompt", "task": "classification"}, "encoder"),
        ({"model": "llama-8b", "gpu": "t4", "method": "prefix", "gradient_checkpointing": "full"}, "checkpointing"),
    ],
)
def test_estimate_refuses_what_cannot_exist(plan, words):
    with pytest.raises(UnsupportedError, match=words):
        estimate(plan, offline=True)


@pytest.mark.parametrize("change", [{"seq_len": 0}, {"micro_batch_size": -1}, {"nonsense": 1}, {"model": 3}])
def test_estimate_names_the_field(change):
    with pytest.raises(AdviseError, match=f"plan.{next(iter(change))}"):
        estimate({"model": "llama-8b", "gpu": "t4", **change})
