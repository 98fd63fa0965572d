"""What would change the answer does, the front is one, and preferences reorder the criteria."""

import pytest

from advisor.criteria import CRITERIA, FIRST, ORDER, order_of
from advisor.decide import decide, survey
from advisor.recommendation import Recommendation
from advisor.request import Request

pytestmark = pytest.mark.usefixtures("stand_ins")


@pytest.mark.thorough
@pytest.mark.parametrize("goal", sorted(ORDER))
@pytest.mark.parametrize("gib", [0.5, 1.0, 2.0, 3.5, 6.0])
def test_with_that_memory_that_combination_wins(make_facts, goal, gib):
    request = Request(model="small-llama", goal=goal)
    for change in decide(request, make_facts(gib=gib), compare=True).changes:
        if change.kind == "memory":
            roomier = make_facts(gib=change.amount * (1 + 1e-9))
            best = decide(request.replace(goal=change.goal or goal), roomier, concede=False).best
            assert best is not None
            assert (best.plan.method, best.plan.quantization) == (change.method, change.quantization)
        elif change.kind == "goal":
            best = decide(request.replace(goal=change.goal), make_facts(gib=gib)).best
            assert best.key == (change.platform, change.method, change.quantization)


def test_with_those_hours_that_combination_wins(make_facts):
    facts = make_facts(gib=9, examples=100_000, mean_len=500)
    base = Request(model="small-llama", goal="best", methods=("full", "lora"))
    free = decide(base, facts).best
    limited = base.replace(max_hours=0.97 * free.run.seconds.expected / 3600)
    answer = decide(limited, facts)
    hours = [c for c in answer.changes if c.kind == "hours"]
    for change in hours:
        best = decide(base.replace(max_hours=change.amount * 1.0001), facts).best
        assert best.key == (change.platform, change.method, change.quantization)
    assert hours


@pytest.mark.parametrize("gib", [3, 9, 40])
def test_no_point_of_the_front_is_beaten_and_all_others_are(make_facts, gib):
    facts, request = make_facts(gib=gib), Request(model="small-llama")
    answer = decide(request, facts, compare=True)
    assert sum(point.best for point in answer.front) <= 1

    def of(tier, seconds, high):
        return tier, seconds or 0.0, high

    front = [of(p.tier, p.seconds_per_token, p.device_high) for p in answer.front]
    every = [
        of(c.quality.tier, 1 / c.speed.tokens_per_second.expected, c.memory.device.high)
        for c in survey(request, facts)[0]
    ]
    for point in front:
        assert not any(o != point and all(a <= b for a, b in zip(o, point, strict=True)) for o in every)
    for other in every:
        assert any(all(a <= b for a, b in zip(p, other, strict=True)) for p in front)


def test_a_compared_answer_round_trips(make_facts):
    answer = decide(Request(model="small-llama", prefer=("time",)), make_facts(gib=6), compare=True)
    assert answer.front
    assert answer.changes
    assert Recommendation.model_validate_json(answer.model_dump_json()) == answer


def test_preferences_come_first_and_keep_the_floor_of_quality():
    assert order_of(Request(model="m")) == (*FIRST, *ORDER["balanced"])
    preferred = order_of(Request(model="m", prefer=("time", "ease")))
    assert preferred[:5] == ("emitted", "quality-floor", "ran", "time", "ease")
    assert set(preferred) == {*FIRST, *ORDER["balanced"]}
    assert all(name in CRITERIA for name in preferred)


def test_a_preference_changes_the_winner(make_facts):
    facts = make_facts(gib=80)
    assert decide(Request(model="small-llama"), facts).best.plan.method == "lora"
    assert decide(Request(model="small-llama", prefer=("capacity",)), facts).best.plan.method == "full"
    roomy = decide(Request(model="small-llama", prefer=("headroom",)), facts).best
    assert roomy.memory.device.high <= decide(Request(model="small-llama"), facts).best.memory.device.high * 1.1


def test_main_memory_and_disk_are_limits(make_facts):
    facts = make_facts(gib=80)
    answer = decide(Request(model="small-llama", disk_gib=0.1), facts)
    assert answer.best is None
    assert {d.rule for d in answer.dropped} >= {"disk"}
    assert decide(Request(model="small-llama", disk_gib=100), facts).best is not None
