import json

import pytest
import yaml

from advisor.emit import Source, emit
from advisor.evaluate import evaluate_cell, evaluate_plan
from advisor.plans import SMALL_DATA, SMALL_DATA_RANK, Cell, draft_plan
from advisor.project import write_project
from advisor.request import Request
from advisor.risks import COMMON_METHODS, find_risks, maintenance
from estimators.answer import Estimate
from estimators.methods import framework_methods, methods
from profiles.errors import InvalidInputError
from profiles.plan import Plan
from profiles.platform import load_platforms

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
    assert f"lora_rank {SMALL_DATA_RANK}" in found[0].guard
    assert (
        plan.lora_rank
        == SMALL_DATA_RANK
        < draft_plan(Cell("hf", "lora", "bf16"), Request(model="m"), make_facts()).lora_rank
    )


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


def test_every_method_has_its_maintenance_told_on_every_platform():
    told = 0
    for platform in load_platforms():
        for method in methods():
            found = [r for r in maintenance(Plan(model="m", platform=platform, method=method)) if "few use" in r.title]
            assert len(found) == (method not in COMMON_METHODS)
            unknown = [r for r in found if "in no comparison of the platforms" in r.finding]
            assert bool(unknown) == (method not in framework_methods())
            told += len(found)
    assert told == 3 * 23


def test_every_risk_has_numbers_or_a_reason_and_a_guard(make_facts):
    seen = set()
    for method, quantization in (("full", "bf16"), ("lora", "bf16"), ("qlora", "nf4-dq"), ("prompt", "bf16")):
        for facts in (make_facts(gib=80, examples=10, mean_len=10), make_facts(gib=80, bf16=False)):
            for risk in risks(facts, method, quantization)[0]:
                assert risk.finding
                assert risk.guard
                seen.add(risk.id)
    assert seen == {"K1", "K2", "K3", "K4"}


# Where the emitted Hugging Face project holds a field of the plan.
EMITTED = {
    "early_stopping_patience": lambda c: c["early_stopping_patience"],
    "weight_decay": lambda c: c["training"]["weight_decay"],
    "lora_rank": lambda c: c["peft"]["r"],
    "lora_dropout": lambda c: c["peft"]["lora_dropout"],
    "num_epochs": lambda c: c["training"]["num_train_epochs"],
    "learning_rate": lambda c: c["training"]["learning_rate"],
    "method": lambda c: c["method"],
    "expandable_segments": lambda c: c["expandable_segments"],
    "micro_batch_size": lambda c: c["training"]["per_device_train_batch_size"],
    "gradient_accumulation_steps": lambda c: c["training"]["gradient_accumulation_steps"],
    "seq_len": lambda c: c["training"]["max_length"],
    "quantization": lambda c: {"bfloat16": "bf16"}[c["model"]["dtype"]],
    "max_grad_norm": lambda c: c["training"]["max_grad_norm"],
}


@pytest.mark.parametrize(
    ("card", "method", "quantization", "request_fields", "titles"),
    [
        ({"gib": 24, "examples": 600, "mean_len": 300}, "lora", "bf16", {}, {"overfitting on small data"}),
        ({"gib": 24, "examples": 9000, "mean_len": 300}, "lora", "bf16", {"num_epochs": 5.0},
         {"overfitting by repetition"}),
        ({"gib": 80, "examples": 300, "mean_len": 300}, "full", "bf16", {}, {"forgetting", "pure bf16 training"}),
        ({"gib": 24}, "prompt", "bf16", {}, {"forgetting", "a method that few use"}),
        ({"gib": 24}, "adalora", "bf16", {}, {"a method that few use"}),
        ({"gib": 100, "bf16": False}, "qlora", "nf4-dq", {}, {"4-bit with fp16 compute", "card largely unused"}),
        ({"gib": 3.0}, "lora", "bf16", {}, {"little headroom"}),
    ],
)  # fmt: skip
def test_every_guard_is_a_setting_that_the_emitted_configuration_holds(
    make_facts, card, method, quantization, request_fields, titles
):
    facts = make_facts(**card)
    request = Request(model="llama-1b", **request_fields)
    candidate = evaluate_cell(Cell("hf", method, quantization), request, facts)
    found = find_risks(candidate, facts)
    assert titles <= {risk.title for risk in found}
    source = Source(model_ref="some/model", held_out=candidate.plan.eval_fraction > 0)
    files = emit(candidate.plan, facts.model, source).files
    config = yaml.safe_load(files["config.yaml"])
    for risk in found:
        assert risk.settings
        for field, value in risk.settings.items():
            if field == "requirements":
                assert value in files["requirements.txt"].splitlines()
            elif field == "eval_fraction":
                assert value > 0
                assert config["training"]["eval_strategy"] == "steps"
                assert "data/eval.jsonl" in files["README.md"]
            else:
                assert EMITTED[field](config) == value


def test_early_stopping_that_is_emitted_stops(make_facts):
    """The script reads the patience, and keeps the best model."""
    facts = make_facts(examples=600, mean_len=300)
    plan = evaluate_cell(Cell("hf", "lora", "bf16"), Request(model="llama-1b"), facts).plan
    files = emit(plan, facts.model, Source(model_ref="some/model")).files
    assert "EarlyStoppingCallback" in files["train.py"]
    training = yaml.safe_load(files["config.yaml"])["training"]
    assert training["load_best_model_at_end"] is True
    assert training["eval_on_start"] is True


def test_the_held_out_share_is_the_one_that_the_guard_names(make_facts, tmp_path):
    facts = make_facts(examples=600, mean_len=300)
    candidate = evaluate_cell(Cell("hf", "lora", "bf16"), Request(model="llama-1b"), facts)
    share = find_risks(candidate, facts)[0].settings["eval_fraction"]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": str(i)}) + "\n" for i in range(600)))
    write_project(
        candidate.plan, facts.model, Estimate(memory=candidate.memory, speed=None), tmp_path / "run", data=str(data)
    )
    rows = {name: len((tmp_path / "run" / "data" / f"{name}.jsonl").read_text().splitlines()) for name in ("train", "eval")}  # fmt: skip # noqa: E501
    assert rows == {"train": 540, "eval": 60}
    assert share == 0.1


def test_rehearsal_is_in_the_data_that_are_written(make_facts, tmp_path):
    """K2: the share that the guard names is the share of the rows, and the run is as much longer."""
    facts = make_facts(gib=80, examples=600, mean_len=300)
    cell, request = Cell("hf", "full", "bf16"), Request(model="llama-1b", replay="general.jsonl", replay_share=0.1)
    candidate = evaluate_cell(cell, request, facts)
    risk = next(risk for risk in find_risks(candidate, facts) if risk.title == "forgetting")
    assert risk.settings["replay_share"] == 0.1
    assert "10% of what is trained are general examples" in risk.guard
    rows = {"data": 600, "general": 100}
    for name, count in rows.items():
        text = "".join(json.dumps({"prompt": f"{name} {i}", "completion": str(i)}) + "\n" for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text(text)
    paths = {"data": str(tmp_path / "data.jsonl"), "replay": str(tmp_path / "general.jsonl")}
    estimate = Estimate(memory=candidate.memory, speed=None)
    write_project(candidate.plan, facts.model, estimate, tmp_path / "run", **paths)
    train = (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()
    general = [row for row in train if "general" in row]
    assert (len(general), len(train)) == (60, 600)
    assert len(set(general)) == len(general)
    assert "general" not in (tmp_path / "run" / "data" / "eval.jsonl").read_text()
    assert "10% of it are general examples" in (tmp_path / "run" / "README.md").read_text()
    plain = evaluate_cell(cell, Request(model="llama-1b"), facts)
    assert candidate.run.steps == pytest.approx(plain.run.steps / 0.9, abs=1)
    with pytest.raises(InvalidInputError, match="holds 100 examples"):
        write_project(candidate.plan.replace(replay_share=0.2), facts.model, estimate, tmp_path / "more", **paths)


def test_little_headroom_turns_expandable_segments_on(make_facts):
    """And only that: they cost nothing where memory is ample, and other makers' allocators do not have them."""
    cell, request = Cell("hf", "lora", "bf16"), Request(model="llama-1b")
    tight, roomy = (evaluate_cell(cell, request, make_facts(gib=gib)) for gib in (3.0, 24))
    assert tight.headroom < 0.05 < roomy.headroom
    assert tight.plan.expandable_segments
    assert not roomy.plan.expandable_segments
    assert any("expandable segments are on" in choice for choice in tight.choices)
    assert not evaluate_cell(cell, request, make_facts(gib=3.0, vendor="AMD")).plan.expandable_segments


def test_copies_and_cut_examples_are_risks_of_the_data(make_facts):
    plain = make_facts(examples=5000, mean_len=300)
    data = plain.data.model_copy(update={"duplicates": 600, "tokens_lost": 0.04, "max_len": 9000})
    titles = {r.title: r for r in risks(plain.model_copy(update={"data": data}))[0]}
    assert "600 of 5000" in titles["overfitting on copies"].finding
    assert titles["overfitting on copies"].settings == {"eval_fraction": 0.05}
    assert "4.0%" in titles["examples are cut"].finding
    assert titles["examples are cut"].settings == {"seq_len": 2048}
    few = plain.data.model_copy(update={"duplicates": 250, "tokens_lost": 0.01})
    found = {r.title for r in risks(plain.model_copy(update={"data": few}))[0]}
    assert not found & {"overfitting on copies", "examples are cut"}
