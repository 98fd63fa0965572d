import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advisor.criteria import FIRST, ORDER, order_of, rank
from advisor.decide import decide, survey
from advisor.plans import enumerate_cells
from advisor.recommendation import Recommendation
from advisor.request import Request
from estimators.methods import methods
from profiles.errors import UnsupportedError
from profiles.plan import Plan
from profiles.quality import find_quality

pytestmark = pytest.mark.usefixtures("stand_ins")
REQUEST = Request(model="small-llama")


def best(facts, **request):
    return decide(Request(model="small-llama", **request), facts).best


@pytest.mark.parametrize("gib", [1, 4, 8, 24, 80])
def test_no_silent_hole(make_facts, gib):
    candidates, dropped = survey(REQUEST, make_facts(gib=gib))
    keys = [c.key for c in candidates] + [(d.platform, d.method, d.quantization) for d in dropped]
    assert sorted(keys) == sorted(tuple(c) for c in enumerate_cells())
    assert len(keys) == 168
    assert all(d.reason and d.rule for d in dropped)


def test_lora_where_it_fits_and_qlora_where_only_that_does(make_facts):
    assert best(make_facts(gib=24)).plan.method == "lora"
    assert best(make_facts(gib=24)).plan.quantization == "bf16"
    assert best(make_facts(gib=1.5)).plan.method == "qlora"


def test_goals_change_the_answer(make_facts):
    roomy = make_facts(gib=80)
    assert best(roomy, goal="best").plan.method == "full"
    assert best(roomy, goal="balanced").plan.method == "lora"
    fast = best(roomy, goal="fast")
    assert fast.quality.tier <= 2
    candidates, _ = survey(REQUEST, roomy)
    ready = [c for c in candidates if c.plan.platform == fast.plan.platform and c.quality.tier <= 2]
    quickest = max(c.speed.tokens_per_second.expected for c in ready)
    assert fast.speed.tokens_per_second.expected >= quickest / 1.1


def test_continued_pretraining_prefers_full(make_facts):
    assert best(make_facts(gib=80, task="pretrain")).plan.method == "full"


def test_only_what_surely_fits_is_recommended(make_facts):
    seen = 0
    for gib in (2, 3, 5, 8, 13, 21):
        candidates, dropped = survey(REQUEST, make_facts(gib=gib))
        assert all(c.memory.device.high <= c.memory.budget for c in candidates)
        assert all(d.needs_gib > gib for d in dropped if d.rule in ("memory", "tight"))
        seen += len(candidates)
    assert seen > 50


@pytest.mark.parametrize("mean_len", [None, 100, 700, 2000])
def test_the_search_finds_what_brute_force_finds(make_facts, mean_len):
    """That is: trying every micro-batch with and without checkpointing."""
    from advisor.evaluate import evaluate_plan

    checked = 0
    for gib in (3.5, 5, 9, 30):
        facts = make_facts(gib=gib, examples=50_000, mean_len=mean_len)
        for found in survey(REQUEST, facts)[0]:
            tried = []
            for ckpt in ("none",) if found.plan.method == "prefix" else ("none", "full"):
                for micro in (1, 2, 4, 8, 16):
                    plan = found.plan.replace(
                        micro_batch_size=micro, gradient_accumulation_steps=16 // micro, gradient_checkpointing=ckpt
                    )
                    candidate = evaluate_plan(plan, facts)
                    if candidate.memory.verdict == "fits":
                        tried.append(candidate.speed.step_seconds.expected)
            assert found.speed.step_seconds.expected == min(tried)
            checked += 1
    assert checked > 80


def test_more_memory_never_gives_a_slower_best_plan(make_facts):
    previous = 0.0
    for gib in (3.5, 4, 6, 9, 14, 24, 48, 80):
        found = best(make_facts(gib=gib), methods=("lora",), quantizations=("bf16",))
        assert found.speed.tokens_per_second.expected >= previous
        previous = found.speed.tokens_per_second.expected


@pytest.mark.parametrize("goal", sorted(ORDER))
@pytest.mark.parametrize("seed", range(5))
def test_order_of_input_does_not_matter(make_facts, goal, seed):
    facts = make_facts()
    ranked, _ = survey(Request(model="small-llama", goal=goal), facts)
    shuffled = random.Random(seed).sample(ranked, len(ranked))
    order = order_of(Request(model="small-llama", goal=goal))
    assert [c.key for c in rank(shuffled, order, facts)] == [c.key for c in ranked]


@pytest.mark.thorough
@pytest.mark.parametrize("goal", sorted(ORDER))
@pytest.mark.parametrize("gib", [1.2, 3, 5, 9, 24, 80])
def test_the_lazy_search_finds_the_winner_of_the_whole_survey(make_facts, goal, gib):
    facts, request = make_facts(gib=gib), Request(model="small-llama", goal=goal)
    answer = decide(request, facts)
    ranked, dropped = survey(request, facts)
    assert answer.best == ranked[0]
    never = {(d.platform, d.method, d.quantization) for d in dropped}
    outranked = {(d.platform, d.method, d.quantization) for d in answer.dropped if d.rule == "outranked"}
    shown = {answer.best.key, *(r.candidate.key for r in answer.runner_ups)}
    for key in shown:
        assert key not in never
    assert not shown & outranked


@pytest.mark.parametrize("goal", sorted(ORDER))
def test_runner_ups_lost_at_a_criterion_of_the_goal(make_facts, goal):
    answer = decide(Request(model="small-llama", goal=goal), make_facts())
    assert len(answer.runner_ups) == 3
    for runner_up in answer.runner_ups:
        assert runner_up.criterion in (*FIRST, *ORDER[goal])
        assert runner_up.why_not
        assert runner_up.candidate.key != answer.best.key
    ways = {r.candidate.key[:2] for r in answer.runner_ups} | {answer.best.key[:2]}
    assert len(ways) == 4
    assert len({platform for platform, _ in ways}) >= 2


def test_nothing_fits_says_what_would(make_facts):
    answer = decide(REQUEST, make_facts(gib=0.5))
    assert answer.verdict == "does not fit"
    assert answer.best is None
    assert answer.nearest[0].method == "qlora"
    assert len({d.method for d in answer.nearest}) == len(answer.nearest)
    offered = float(re.search(r"offers ([\d.]+) GiB", answer.way_out[0])[1])
    assert decide(Request(model="small-llama", methods=("qlora",)), make_facts(gib=offered)).verdict == "fits"
    needs = min(d.needs_gib for d in answer.dropped if d.needs_gib)
    assert decide(REQUEST, make_facts(gib=needs)).verdict == "fits"


def test_a_shorter_length_that_is_proposed_does_fit(make_facts):
    request = Request(model="small-llama", methods=("qlora",))
    long = make_facts(gib=1.0, seq_len=8192)
    answer = decide(request, long)
    assert answer.best is None
    found = re.search(r"--seq-len (\d+)", " ".join(answer.way_out))
    assert found
    assert decide(request, make_facts(gib=1.0, seq_len=int(found[1]))).verdict == "fits"
    assert decide(request, make_facts(gib=1.0, seq_len=2 * int(found[1])), concede=False).best is None


def test_limits_drop_with_numbers(make_facts):
    facts = make_facts(examples=100_000, mean_len=500)
    answer = decide(Request(model="small-llama", max_hours=0.1), facts)
    assert answer.best is None
    assert all("the limit is 6 min" in d.reason for d in answer.dropped if d.rule == "max-hours")
    assert any(d.rule == "max-hours" for d in answer.dropped)
    assert answer.verdict == "does not fit"
    assert answer.nearest[0].rule == "max-hours"
    assert answer.way_out == ("a higher --max-hours, fewer --epochs, or a faster card",)


def test_only_the_impossible_was_asked_for(make_facts):
    with pytest.raises(UnsupportedError, match="no bias"):
        decide(Request(model="small-llama", methods=("bitfit",)), make_facts())


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tenths=st.integers(1, 1000), goal=st.sampled_from(["balanced", "fast", "cheap", "best"]))
def test_recommendation_round_trips_and_is_deterministic(make_facts, tenths, goal):
    facts = make_facts(gib=tenths / 10)
    request = Request(model="small-llama", goal=goal)
    answer = decide(request, facts)
    text = answer.model_dump_json()
    assert Recommendation.model_validate_json(text) == answer
    assert decide(request, facts).model_dump_json() == text


def test_recommended_plan_estimates_to_the_recommended_numbers(make_facts):
    from advisor.evaluate import evaluate_plan

    facts = make_facts()
    found = decide(REQUEST, facts).best
    again = evaluate_plan(Plan.model_validate_json(found.plan.model_dump_json()), facts)
    assert (again.memory, again.speed, again.run) == (found.memory, found.speed, found.run)


def test_every_method_and_storage_has_evidence():
    pairs = {(c.method, c.quantization) for c in enumerate_cells()} | {(method, "bf16") for method in methods()}
    for method, quantization in pairs:
        for kind in ("causal-lm", "encoder", "encoder-decoder"):
            for task in ("sft", "pretrain", "classification"):
                quality = find_quality(method, quantization, kind=kind, task=task)
                assert quality.tier == max(quality.method.tier, quality.storage.tier)
                assert quality.method.sources
    assert len(pairs) == 74


def test_several_cards_shard_before_the_optimizer_is_quantised(make_facts):
    plan = best(make_facts(gib=8, n_gpus=8), methods=("full",), quantizations=("bf16",)).plan
    assert plan.optimizer == "adamw_torch_fused"


def test_what_cannot_be_written_has_no_next_command(make_facts):
    answer = decide(Request(model="small-llama", platforms=("unsloth",)), make_facts(task="dpo"))
    assert answer.best is not None
    assert answer.next_commands == ()
    assert any("by hand" in reason for reason in answer.reasons)


@pytest.mark.parametrize(
    ("known", "asked", "never"),
    [
        ({}, {"quantizations": ("int8",)}, "int8"),
        ({"n_gpus": 2}, {"methods": ("lora",), "quantizations": ("bf16",)}, "several cards"),
        ({"task": "pretrain"}, {"methods": ("full",), "quantizations": ("bf16",)}, "pretrain"),
    ],
)
def test_what_ran_elsewhere_is_no_run_of_this(make_facts, known, asked, never):
    """LoRA, QLoRA and full fine-tuning ran on Unsloth, but over bf16 and 4 bits alone, on instructions, on one card."""
    found = decide(Request(model="small-llama", **asked), make_facts(gib=80, **known))
    assert found.best.plan.platform != "unsloth"
    theirs = next(r for r in found.runner_ups if r.candidate.plan.platform == "unsloth")
    assert (theirs.criterion, theirs.why_not) == ("ran", f"never run by us on Unsloth: {never}")


def test_what_ran_on_all_platforms_is_decided_by_other_questions(make_facts):
    found = decide(Request(model="small-llama", methods=("lora",), quantizations=("bf16",)), make_facts(gib=80))
    assert {r.candidate.plan.platform for r in found.runner_ups} == {"llamafactory", "unsloth"}
    assert "ran" not in {r.criterion for r in found.runner_ups}
