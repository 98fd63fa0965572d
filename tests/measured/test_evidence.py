"""What is said of our own runs is what their rows show, and no more."""

import json
from pathlib import Path
from statistics import median

import pytest

from profiles.plan import Plan
from profiles.platform import load_platforms

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
RUNS = [json.loads(line) for line in (HERE / "ours.jsonl").read_text(encoding="utf-8").splitlines()]
FINISHED = [(Plan.model_validate(run["plan"]), run) for run in RUNS if run["status"] == "finished"]
AXES = {"methods": "method", "quantizations": "quantization", "tasks": "task"}


@pytest.mark.parametrize("platform", load_platforms().values(), ids=lambda p: p.id)
def test_what_ran_on_a_gpu_has_a_finished_run_and_the_other_way_round(platform):
    for axis, field in AXES.items():
        cells = getattr(platform, axis)
        said = {name for name, cell in cells.items() if cell.ran == "gpu"}
        seen = {getattr(plan, field) for plan, _ in FINISHED if plan.platform == platform.id}
        assert said == seen & set(cells), axis


def test_what_could_not_be_verified_never_ran():
    for platform in load_platforms().values():
        for axis in AXES:
            assert not [c for c in getattr(platform, axis).values() if c.verified == "no" and c.ran is not None]


def test_several_cards_ran_on_no_gpu():
    assert not [run["id"] for plan, run in FINISHED if plan.n_gpus > 1]
    assert "gpu" not in {platform.ran_together for platform in load_platforms().values()}


def test_tasks_that_ran_on_a_cpu_stand_in_the_tables_of_those_runs():
    text = (DOCS / "methods-on-cpu.md").read_text(encoding="utf-8")
    trained = {name for name, cell in load_platforms()["hf"].tasks.items() if cell.ran == "cpu"}
    assert trained == {"pretrain", "classification", "kto", "grpo", "reward", "orpo"}
    assert all(f"\n| {name} |" in text for name in trained - {"pretrain"})  # one run, when the releases were read
    text = (DOCS / "llamafactory-on-cpu.md").read_text(encoding="utf-8").casefold()
    trained = {name for name, cell in load_platforms()["llamafactory"].tasks.items() if cell.ran == "cpu"}
    assert all(f"\n| {'pre-training' if name == 'pretrain' else name}" in text for name in trained)


def test_the_runs_had_the_named_releases_but_for_torch():
    for plan, run in FINISHED:
        named = load_platforms()[plan.platform].versions
        assert {name for name in named if run["versions"][name] != named[name]} == {"torch"}
        assert (run["versions"]["torch"], run["device"], len(run["steps"])) == ("2.11.0", "NVIDIA H200", 6)


def test_unsloths_pace_is_that_of_the_pairs_that_ran():
    """Plans equal but for the platform, and for where checkpoints are kept; without the first step, which warms up."""

    def pace(run):
        return median(run["steps"][1:])

    def alike(plan):
        kept = "none" if plan.gradient_checkpointing == "none" else "full"
        return plan.replace(platform="hf", gradient_checkpointing=kept).model_dump_json()

    theirs = {alike(plan): pace(run) for plan, run in FINISHED if plan.platform == "hf" and "limit_gib" not in run}
    mine = [(plan, run) for plan, run in FINISHED if plan.platform == "unsloth" and alike(plan) in theirs]
    times = [theirs[alike(plan)] / pace(run) for plan, run in mine]
    assert (len(times), sum(plan.model == "llama-1b" for plan, _ in mine)) == (12, 11)
    said = load_platforms()["unsloth"].pace
    assert said.startswith(f"{min(times):.1f} to {max(times):.1f} times as fast as Hugging Face in our twelve pairs")
    assert "eleven of a 1B model" in said
