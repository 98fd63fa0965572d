"""G1: the three steps, their order by value for money, and the command."""

import json
import shlex

import pytest

from advisor.assess import assess
from advisor.cli.main import run
from advisor.evaluate import evaluate_plan
from advisor.plans import Cell, draft_plan
from advisor.render.roadmap import render_roadmap
from advisor.request import Request
from advisor.roadmap import EXIT_TESTS, STEPS, WORTH_A_TRIAL, Roadmap, order_by_value, plan_roadmap
from estimators.interval import Interval


def roadmap(**fields):
    request = Request(offline=True, **fields)
    return plan_roadmap(request, assess(request))


def places(found):
    return {step.id: step.place for step in found.steps}


def test_an_8b_model_on_24_gb_begins_with_lora_and_says_why():
    """Prompt tuning still runs forward and backward through 8 billion frozen parameters."""
    found = roadmap(model="llama-8b", gpu="rtx4090", examples=5000, mean_len=400)
    assert [step.id for step in found.steps] == ["adapter", "prompt", "full"]
    assert places(found) == {"adapter": "first", "prompt": "skip", "full": "does not fit"}
    adapter, prompt, full = found.steps
    assert prompt.candidate.run.seconds.expected > WORTH_A_TRIAL * adapter.candidate.run.seconds.expected
    assert f"{prompt.cost_share:.0%}" in prompt.why
    assert "begins with prompt tuning" in found.departure
    assert "tier 5 against 1" in found.departure
    assert "needs" in full.why
    assert full.candidate is None


def test_where_all_fits_full_fine_tuning_is_the_last_resort():
    found = roadmap(model="llama-1b", gpu="a100-80g", examples=5000, mean_len=400)
    assert [step.id for step in found.steps] == ["adapter", "full", "prompt"]
    assert places(found) == {"adapter": "first", "full": "last resort", "prompt": "skip"}


def test_continued_pretraining_begins_with_full_fine_tuning():
    found = roadmap(model="qwen-0.5b", gpu="h100", task="pretrain")
    assert found.steps[0].id == "full"
    assert places(found)["adapter"] == "skip"


def test_every_step_has_cost_exit_test_and_a_command_that_advise_understands(capsys):
    found = roadmap(model="llama-1b", gpu="a100-80g", examples=5000, mean_len=400)
    assert set(EXIT_TESTS) == set(STEPS)
    for step in found.steps:
        assert step.exit_test == EXIT_TESTS[step.id]
        assert step.candidate.run.usd is not None
        words = shlex.split(step.commands[0])
        assert words[:2] == ["ftadvise", "emit"]
        again = words[2 : words.index("-o")]
        assert run(["advise", *again, "--offline", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)["answer"]["best"]["plan"]
        assert plan["method"] == step.candidate.plan.method
        assert plan["micro_batch_size"] == step.candidate.plan.micro_batch_size
    assert len(found.steps) == 3


@pytest.fixture
def step(stand_ins, make_facts):
    """A step of a chosen cost with the evidence of its method."""

    def make(method, seconds):
        facts = make_facts(gib=80, examples=1000, mean_len=100)
        candidate = evaluate_plan(draft_plan(Cell("hf", method, "bf16"), Request(model="m"), facts), facts)
        changed = candidate.run.model_copy(update={"seconds": Interval.around(seconds, 0.1, 0.1)})
        return candidate.model_copy(update={"run": changed})

    return make


@pytest.mark.parametrize(
    ("prompt", "first"),
    [(5, "prompt"), (50, "prompt"), (51, "adapter"), (100, "adapter"), (300, "adapter")],
)
def test_a_poorer_step_goes_first_only_if_it_costs_at_most_half(step, prompt, first):
    found = {"prompt": step("prompt", prompt), "adapter": step("lora", 100), "full": step("full", 200)}
    ordered = order_by_value(found)
    assert ordered[0] == first
    assert ordered.index("adapter") < ordered.index("full")
    assert sorted(ordered) == sorted(found)


def test_of_equal_evidence_the_smaller_change_comes_first_whatever_it_costs(step):
    assert order_by_value({"full": step("full", 10), "adapter": step("lora", 12)}) == ["adapter", "full"]


def test_the_frameworks_order_where_the_numbers_bear_it_out(monkeypatch, step):
    """A prompt step of a tenth of the price is worth a trial."""
    import advisor.roadmap

    cheap = {"prompt": step("prompt", 10), "lora": step("lora", 100), "full": step("full", 150)}

    class Answer:
        nearest = ()

        def __init__(self, best):
            self.best = best

    monkeypatch.setattr(advisor.roadmap, "decide", lambda request, facts: Answer(cheap[request.methods[0]]))
    found = roadmap(model="llama-1b", gpu="a100-80g")
    assert [s.id for s in found.steps] == ["prompt", "adapter", "full"]
    assert places(found) == {"prompt": "first", "adapter": "then", "full": "last resort"}
    assert "more than 10% of all cases" in found.steps[0].why
    assert found.departure.startswith("the order of the published framework")


def test_steps_that_cannot_be_say_why():
    found = roadmap(model="bert-base", gpu="t4")
    assert places(found)["prompt"] == "not possible"
    assert "encoder" in next(s for s in found.steps if s.id == "prompt").why
    narrowed = roadmap(model="llama-1b", gpu="t4", methods=("lora",))
    assert places(narrowed) == {"adapter": "first", "prompt": "not possible", "full": "not possible"}
    assert [s.candidate.plan.method for s in narrowed.steps if s.candidate] == ["lora"]


def test_the_command_its_exit_codes_and_its_json(capsys):
    ask = ["roadmap", "--offline", "--gpu", "rtx4090", "--model"]
    assert run([*ask, "llama-8b", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert Roadmap.model_validate(answer).model_dump(mode="json") == answer
    assert run([*ask, "llama-405b"]) == 1
    assert "No step can be taken here." in capsys.readouterr().out
    assert run([*ask, "no-such-model"]) == 2


@pytest.mark.parametrize("width", [60, 100])
def test_pages_keep_their_width(width):
    page = render_roadmap(roadmap(model="llama-8b", gpu="rtx4090", examples=500, mean_len=100), width)
    lines = [x for x in str(page).splitlines() if not x.lstrip().startswith("ftadvise ")]
    assert max(map(len, lines)) <= width
    assert any(line.startswith("1. LoRA or QLoRA: first") for line in lines)
