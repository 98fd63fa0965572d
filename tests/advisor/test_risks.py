import pytest

from advisor.evaluate import evaluate_plan
from advisor.plans import SMALL_DATA, Cell, draft_plan
from advisor.request import Request
from advisor.risks import find_risks

pytestmark = pytest.mark.usefixtures("stand_ins")


def risks(facts, method="lora", quantization="bf16", platform="hf", **request):
    plan = draft_plan(Cell(platform, method, quantization), Request(model="m", **request), facts)
    return find_risks(evaluate_plan(plan.replace(gradient_checkpointing="full"), facts), facts), plan


def ids(found):
    return [risk.id for risk in found]


def test_small_data_raise_overfitting_and_the_plan_holds_the_guard(make_facts):
    found, plan = risks(make_facts(examples=SMALL_DATA - 1, mean_len=100))
    assert ids(found)[0] == "K1"
    assert str(SMALL_DATA - 1) in found[0].finding
    assert plan.early_stopping_patience > 0
    assert f"after {plan.early_stopping_patience} evaluations" in found[0].guard
    assert f"{plan.eval_fraction:.0%} held back" in found[0].guard
    assert f"lora_dropout {plan.lora_dropout}" in found[0].guard


def test_enough_data_do_not(make_facts):
    found, _ = risks(make_facts(examples=SMALL_DATA, mean_len=100))
    assert "K1" not in ids(found)


def test_many_epochs_raise_overfitting(make_facts):
    facts = make_facts(examples=50_000, mean_len=100)
    assert "K1" in ids(risks(facts, num_epochs=5)[0])
    assert "K1" not in ids(risks(facts, num_epochs=3)[0])


def test_forgetting_by_full_fine_tuning_not_by_lora(make_facts):
    facts = make_facts(gib=80)
    assert "K2" in ids(risks(facts, "full")[0])
    assert "K2" not in ids(risks(facts, "lora")[0])


def test_headroom_on_both_sides(make_facts):
    facts = make_facts(gib=80)
    titles = {risk.title for risk in risks(facts)[0]}
    assert "card largely unused" in titles
    needs = evaluate_plan(risks(facts)[1].replace(gradient_checkpointing="full"), facts).memory.device.high
    tight = make_facts(gib=needs * 1.01 / 2**30)
    titles = {risk.title for risk in risks(tight)[0]}
    assert "little headroom" in titles
    assert "card largely unused" not in titles


def test_numeric_risks(make_facts):
    assert "pure bf16 training" in {r.title for r in risks(make_facts(gib=80), "full")[0]}
    assert "4-bit with fp16 compute" in {r.title for r in risks(make_facts(bf16=False), "qlora", "nf4-dq")[0]}
    assert "4-bit with fp16 compute" not in {r.title for r in risks(make_facts(), "qlora", "nf4-dq")[0]}


def test_maintenance_of_young_platforms_and_rare_methods(make_facts):
    assert "K4" in ids(risks(make_facts(gib=4), platform="unsloth")[0])
    assert "K4" in ids(risks(make_facts(gib=4), "adalora")[0])
    assert "K4" not in ids(risks(make_facts(gib=4), "lora")[0])
    licence = next(r for r in risks(make_facts(gib=4), platform="unsloth")[0] if r.id == "K4").finding
    assert "AGPL" in licence


def test_every_risk_has_numbers_or_a_reason_and_a_guard(make_facts):
    seen = set()
    for method, quantization in (("full", "bf16"), ("lora", "bf16"), ("qlora", "nf4-dq"), ("prompt", "bf16")):
        for facts in (make_facts(gib=80, examples=10, mean_len=10), make_facts(gib=80, bf16=False)):
            for risk in risks(facts, method, quantization)[0]:
                assert risk.finding
                assert risk.guard
                seen.add(risk.id)
    assert seen == {"K1", "K2", "K3", "K4"}
