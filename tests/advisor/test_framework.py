"""Every id of the published framework, exercised in what it became; docs/concepts/framework.md says where that is."""

import re
from pathlib import Path

import pytest
import yaml

from advisor.api import advise
from advisor.assess import assess
from advisor.claims import all_claims
from advisor.decide import survey
from advisor.deploy import deploy
from advisor.emit import Forecast, Source, emit
from advisor.facts import resolve_model
from advisor.feedback import compare, measure_run
from advisor.general_text import write_general_text
from advisor.plans import MERGEABLE, RULES
from advisor.request import Request
from advisor.roadmap import plan_roadmap
from advisor.trials.optimise import propose
from advisor.trials.space import space_of
from estimators.answer import Estimate
from estimators.methods import framework_methods, get_method
from profiles.errors import UnsupportedError
from profiles.families import describe_model
from profiles.measurement import Environment, Measurement
from tests.advisor.test_deploy import finished
from tests.advisor.test_launch_feedback import gpu_events, make_run
from tests.advisor.test_optimise import PLAN, write_run

ROOT = Path(__file__).parents[2]
ROWS = {
    cells[0].strip(): [cell.strip() for cell in cells[1:]]
    for line in (ROOT / "docs" / "concepts" / "framework.md").read_text(encoding="utf-8").splitlines()
    if (cells := line.strip("|").split("|"))
    and len(cells) == 4
    and re.match(r"^[PMRHSDFKGT]\d?( |$)", cells[0].strip())
}
IDS = [
    *(f"P{n}" for n in range(1, 10)),
    *(f"{section}-{method}" for section in "MR" for method in framework_methods()),
    *(f"H{n}" for n in range(1, 7)),
    *(f"S{n}" for n in range(1, 5)),
    *(f"D{n}" for n in range(1, 4)),
    *(f"F{n}" for n in range(1, 6)),
    *(f"K{n}" for n in range(1, 5)),
    *("G1", "G2"),
    *(f"T{n}" for n in range(1, 5)),
]


def best(**fields):
    return advise({"offline": True, **fields}).best


def ranked(**fields):
    request = Request(offline=True, **fields)
    return survey(request, assess(request))


def row_of(name):
    """The page's row: P and H rows stand together."""
    for key, row in ROWS.items():
        first, _, last = key.partition(" to ")
        if name == key or name.split("-")[0] == key or (last and first <= name <= last and name[0] == first[0]):
            return row
    raise AssertionError(f"docs/concepts/framework.md has no row of {name}")


def test_every_id_has_its_row_and_its_test():
    assert len(IDS) == len(set(IDS)) == 53
    here = Path(__file__).read_text(encoding="utf-8")
    for name in IDS:
        assert row_of(name)[2] in ("built", "in part", "direction")
        if name[0] in "PMRH":
            assert name in all_claims()
        else:
            assert f"def test_{name.casefold()}_" in here
    assert set(all_claims()) == {name for name in IDS if name[0] in "PMRH"}


def test_the_places_that_the_page_names_exist():
    named = {path for row in ROWS.values() for path in re.findall(r"`((?:advisor|profiles|tests)/[\w./-]+)`", row[1])}
    assert len(named) > 15
    for path in named:
        assert (ROOT / path).exists(), path


def test_s1_limited_hardware_is_qlora():
    """On Unsloth, as the comparison says: QLoRA ran there and on Hugging Face, the evidence on quality is the same, so
    time decides before maturity. Rank 16 is enough where all layers have adapters (QLoRA paper)."""
    fields = {"model": "llama-8b", "gpu": "t4", "seq_len": 1024}
    found = best(**fields)
    assert (found.plan.method, found.plan.quantization, found.plan.platform) == ("qlora", "nf4-dq", "unsloth")
    assert found.plan.lora_rank == 16
    assert found.plan.target_modules == ("all-linear",)
    answer = advise({"offline": True, **fields})
    runner_up = next(r for r in answer.runner_ups if r.candidate.plan.method == "qlora")
    assert (runner_up.candidate.plan.platform, runner_up.criterion) == ("hf", "time")
    assert any("run by us on an H200" in reason for reason in answer.reasons)
    assert any("depends on the host" in reason for reason in answer.reasons)


def test_s2_medium_resources_are_lora_and_llamafactory_for_mixed_teams():
    """By the comparison LLaMA-Factory for all; the program keeps it for teams that want no code. Among the rest time
    decides: LoRA ran on all three, and Unsloth is the fastest by the estimate; in our runs it was faster too."""
    fields = {"model": "qwen-7b", "gpu": "rtx4090"}
    mixed, coders = best(**fields, skill="low-code"), best(**fields)
    assert (mixed.plan.method, mixed.plan.platform) == ("lora", "llamafactory")
    assert (coders.plan.method, coders.plan.platform) == ("lora", "unsloth")


def test_s3_ample_resources_are_full_fine_tuning_if_quality_comes_first():
    """LLaMA-Factory is as fast and as good, and evaluates with whole logits: less memory decides between equals. Not
    AdaLoRA: on decoders no neutral evidence is for it, and its step is slower."""
    fields = {"model": "llama-8b", "gpu": "8x h100-sxm"}
    found = best(**fields, goal="best")
    assert found.plan.method == "full"
    assert found.plan.platform == "hf"
    found_on = {(c.plan.platform, c.plan.method): c for c in ranked(**fields, goal="best")[0]}
    theirs = found_on["llamafactory", "full"]
    assert theirs.quality.tier == found.quality.tier
    assert theirs.speed.step_seconds.expected == pytest.approx(found.speed.step_seconds.expected, rel=0.1)
    assert theirs.memory.device.high > found.memory.device.high
    assert best(**fields).plan.method == "lora"
    adalora = next(c for c in ranked(**fields)[0] if c.plan.method == "adalora")
    lora = next(c for c in ranked(**fields)[0] if c.plan.method == "lora")
    assert adalora.quality.tier > lora.quality.tier


def test_s4_speed_first_is_not_prompt_tuning():
    """It saves at most a third of an adapter's time and loses 13 to 40 points: the program departs, and says so."""
    request = Request(model="llama-8b", gpu="rtx4090", goal="fast", examples=5000, mean_len=400, offline=True)
    assert advise(request).best.plan.method in ("lora", "qlora")
    found = plan_roadmap(request, assess(request))
    prompt = next(step for step in found.steps if step.id == "prompt")
    assert prompt.place == "skip"
    assert prompt.cost_share > 0.6
    assert "begins with prompt tuning" in found.departure


@pytest.mark.thorough
def test_d1_resources_decide():
    fields = {"model": "llama-8b", "examples": 50_000, "mean_len": 400}
    assert best(**fields, gpu="rtx4090").plan.method == "lora"
    assert best(**fields, gpu="rtx3060-12gb").plan.method == "qlora"
    assert best(**fields, gpu="rtx4090", max_usd=0.01) is None
    assert best(**fields, gpu="rtx4090", max_hours=0.1) is None
    assert best(**fields, gpu="8x h100-sxm", max_hours=0.5) is not None


def test_d2_needs_decide():
    assert best(model="bert-base", gpu="t4").plan.task == "classification"
    fields = {"model": "qwen-0.5b", "gpu": "h100"}
    assert best(**fields, task="pretrain").plan.method == "full"
    assert best(**fields).plan.method == "lora"
    _, dropped = ranked(**fields, deployment="gguf")
    kept_out = {d.method for d in dropped if d.rule == "deployment"}
    assert kept_out == set(framework_methods()) - MERGEABLE - {"bitfit"}


def test_d3_ability_decides():
    _, dropped = ranked(model="llama-8b", gpu="rtx4090", skill="low-code")
    assert {d.platform for d in dropped if d.rule == "low-code"} == {"hf", "unsloth"}


def test_f1_assess_gives_facts_with_fingerprints():
    facts = assess(Request(model="llama-8b", gpu="rtx4090", offline=True))
    assert set(facts.fingerprints) == {"model", "hardware"}
    assert facts == assess(Request(model="llama-8b", gpu="rtx4090", offline=True))


def test_f2_screen_names_a_rule_for_everything_dropped():
    candidates, dropped = ranked(model="llama-8b", gpu="rtx4090")
    assert len(candidates) + len(dropped) == 168
    rules = {d.rule for d in dropped}
    assert len(rules & set(RULES)) >= 4
    assert all(d.reason for d in dropped)


@pytest.fixture
def project():
    def write(**fields):
        plan = best(model="llama-8b", gpu="rtx4090").plan.replace(**fields)
        return emit(plan, resolve_model("llama-8b", offline=True), Source(model_ref="some/model"))

    return write


def test_f3_validate_is_a_short_run_of_the_same_plan(project):
    training = yaml.safe_load(project(max_steps=20).files["config.yaml"])["training"]
    assert training["max_steps"] == 20
    assert training["logging_steps"] == 1


def test_f4_optimise_goes_from_a_measured_plan_to_the_next_better_one(tmp_path):
    found = propose(write_run(tmp_path / "run", PLAN, share=1.0), PLAN, resolve_model("llama-8b"))
    assert found.expected > found.measured
    assert found.plan.global_batch_size == PLAN.global_batch_size


def test_f3_what_was_measured_stands_beside_what_was_predicted():
    found = best(model="llama-8b", gpu="rtx4090")
    forecast = Forecast.of(Estimate(memory=found.memory, speed=found.speed))
    measured = Measurement(
        id="a-run", date="2026-11-24", plan=found.plan, environment=Environment(hardware="RTX 4090"),
        model_parameters=8_030_261_248, trainable_parameters=found.memory.trainable_parameters, steps=20,
        step_seconds_median=forecast.step_seconds.expected, tokens_per_second=None, first_loss=1.0, last_loss=0.5,
        eval_loss_before=1.2, eval_loss_after=0.9, peak_allocated=round(2 * forecast.allocated.expected),
    )  # fmt: skip
    memory, step, loss = compare(measured, forecast)
    assert "(-50.0%), outside the predicted" in memory
    assert "(+0.0%), inside the predicted" in step
    assert "(better)" in loss


def test_f5_deploy_is_a_project_that_runs_by_itself(project):
    files = project().files
    assert {"train.py", "config.yaml", "requirements.txt", "README.md"} <= set(files)
    assert "ftadvise" not in files["train.py"]


def test_f5_deploy_hands_a_finished_run_over(tmp_path):
    done = finished(tmp_path / "run")
    deployed = deploy(done, "vllm", tmp_path / "served")
    assert deployed.use.startswith("vllm serve")
    assert {"adapter_model.safetensors", "vllm.yaml", "README.md"} <= set(deployed.files)
    assert "held-out lines: loss 3.5000 before, 2.5000 after" in (tmp_path / "served" / "README.md").read_text()
    for method in set(framework_methods()) - MERGEABLE - {"bitfit"}:  # what the decision drops cannot be merged either
        soft = finished(tmp_path / method, {"peft_type": get_method(method).peft_type}, method=method)
        with pytest.raises(UnsupportedError, match="cannot be merged"):
            deploy(soft, "merged", tmp_path / "out")


def titles(**fields):
    return {(risk.id, risk.title) for risk in advise({"offline": True, **fields}).risks}


def test_k1_small_data():
    assert ("K1", "overfitting on small data") in titles(model="llama-8b", gpu="rtx4090", examples=200, mean_len=300)


def test_k2_forgetting():
    assert ("K2", "forgetting") in titles(model="llama-1b", gpu="a100-80g", goal="best")


def test_k2_forgetting_is_measured_on_general_text_before_and_after(tmp_path):
    start, *steps, end = gpu_events()
    losses = {0: (2.0, 3.0), 4: (3.0, 4.1)}
    before, after = ({"event": "general", "step": step, "losses": found} for step, found in losses.items())
    found = measure_run(make_run(tmp_path / "run", [start, before, *steps, after, end])).retention
    assert (found.verdict, found.loss_before, found.loss_after) == ("forgotten", 2.5, pytest.approx(3.55))
    write_general_text(tmp_path / "data", None)  # what every project gets
    assert len((tmp_path / "data" / "general.jsonl").read_text(encoding="utf-8").splitlines()) == 24


def test_k2_general_examples_are_mixed_in_on_request(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n}?", "completion": "{n}"}}\n' for n in range(50)))
    fields = {"model": "llama-1b", "gpu": "a100-80g", "goal": "best", "data": str(rows), "replay": str(rows)}
    answer = advise({"offline": True, **fields, "replay_share": 0.2})
    assert answer.best.plan.replay_share == 0.2
    (guard,) = (risk.guard for risk in answer.risks if risk.title == "forgetting")
    assert "20% of what is trained are general examples" in guard


def test_k3_headroom():
    assert ("K3", "little headroom") in titles(model="llama-8b", vram_gib=8, seq_len=512)
    assert ("K3", "card largely unused") in titles(model="smollm2-135m", gpu="b200", seq_len=512)


def test_k4_maintenance():
    assert ("K4", "maintenance of the platform") in titles(model="qwen-7b", gpu="rtx4090", skill="low-code")


def test_g1_step_by_step():
    request = Request(model="llama-1b", gpu="a100-80g", offline=True)
    steps = plan_roadmap(request, assess(request)).steps
    assert {step.id for step in steps} == {"prompt", "adapter", "full"}
    assert all(step.exit_test and step.commands for step in steps)


def test_g2_monitoring_has_the_first_loss_to_compare_with(project):
    files = project().files
    assert yaml.safe_load(files["config.yaml"])["training"]["eval_on_start"] is True
    assert "metrics.jsonl" in files["progress.py"]


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "clip"])
def test_t1_multimodal_models_are_refused_not_guessed(kind):
    with pytest.raises(UnsupportedError, match="is not known"):
        describe_model({"model_type": kind, "hidden_size": 64}, "tower")


def test_t2_continual_learning_has_no_setting_yet(project):
    assert "replay" not in project().files["config.yaml"]
    assert row_of("T2")[2] == "direction"


def test_t3_nothing_is_sent_anywhere(project):
    assert yaml.safe_load(project().files["config.yaml"])["training"]["report_to"] == "none"
    assert row_of("T3")[2] == "direction"


def test_t4_hyper_parameters_are_published_ones_and_searched_around_them(project):
    assert yaml.safe_load(project().files["config.yaml"])["training"]["learning_rate"] == 2e-4
    space = space_of(project().plan, Source(model_ref="meta-llama/Llama-3.1-8B"), resolve_model("llama-8b"))
    assert space.start == {"learning_rate": 2e-4, "lora_rank": 16, "alpha_over_rank": 2.0}
    assert space.rates == pytest.approx((2e-5, 2e-3))
    assert row_of("T4")[2] == "in part"
