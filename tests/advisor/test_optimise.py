"""The next better plan of a card that is not here: from runs whose files were written by hand."""

import json
from pathlib import Path

import pytest

from advisor.emit import Forecast, Source, emit, write_emission
from advisor.facts import resolve_model
from advisor.launch.folder import RunState, write_state
from advisor.plan_changes import describe_changes
from advisor.trials.evidence import FREE, gather_evidence, is_same_plan, next_folder, read_evidence
from advisor.trials.optimise import Proposal, optimise, propose
from advisor.trials.project import sample_rows
from estimators.answer import Estimate
from estimators.memory import estimate_memory
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.gpu import Hardware
from profiles.plan import Plan

MODEL = resolve_model("llama-8b")
CARD = Hardware(gpu=find_gpu("rtx4090"), n_gpus=1, origin="named")
SOURCE = Source(model_ref="meta-llama/Llama-3.1-8B")
PLAN = Plan(
    model="meta-llama/Llama-3.1-8B", gpu="rtx4090", method="qlora", micro_batch_size=1, gradient_accumulation_steps=16,
    seq_len=512, lora_alpha=48, lora_dropout=0.1, learning_rate=3e-4,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "home"))


def write_run(
    folder: Path, plan: Plan, *, status: str = "finished", share: float = 1.0, pace: float = 100.0, words: int = 300
) -> Path:
    """A run of `plan` that has ended so: `share` of the expected memory reserved, `pace` tokens a second."""
    memory = estimate_memory(plan, MODEL, CARD)
    forecast = Forecast.of(Estimate(memory=memory, speed=None))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = (json.dumps({"prompt": "word " * (words + n), "completion": "yes"}) for n in range(90))
    (folder / "data" / "train.jsonl").write_text("\n".join(rows) + "\n")
    write_emission(emit(plan, MODEL, SOURCE, forecast), folder, force=True)
    reserved = round(memory.reserved.expected * share)
    steps = (
        {"event": "step", "step": n, "seconds": 2.0, "tokens": 2 * pace, "reserved": reserved} for n in range(1, 9)
    )
    end = {"event": "end", "step": 8, "status": status}
    (folder / "runs").mkdir(exist_ok=True)
    lines = [{"event": "start", "step": 0}, *steps, end]
    (folder / "runs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    size = (folder / "runs" / "metrics.jsonl").stat().st_size
    message = "out of memory: torch.OutOfMemoryError" if status == "out-of-memory" else ""
    write_state(folder, RunState(status=status, started="x", step=8, metrics_bytes=size, message=message))
    return folder


def proposed(project: Path, plan: Plan = PLAN) -> Proposal:
    found = propose(project, plan, MODEL)
    assert found is not None
    return found


def test_what_was_measured_leads_to_a_faster_plan_that_learns_the_same(tmp_path: Path) -> None:
    project = write_run(tmp_path / "run", PLAN, pace=100.0)
    found = proposed(project)
    assert found.plan.model_dump(exclude=FREE) == PLAN.model_dump(exclude=FREE)
    assert found.plan.global_batch_size == 16
    assert not found.plan.packing
    assert found.plan.micro_batch_size > 1 or found.plan.gradient_checkpointing == "none"
    assert found.measured == 100.0
    assert found.expected is not None
    assert found.expected > 102.0
    assert found.device_high <= found.budget
    assert describe_changes(found.changes)


def test_short_examples_are_packed_into_as_many_tokens_a_step(tmp_path: Path) -> None:
    project = write_run(tmp_path / "run", PLAN, words=20)
    found = proposed(project).plan
    assert found.packing
    mean = 20 + 45  # words, about a token each
    assert found.global_batch_size * PLAN.seq_len == pytest.approx(PLAN.global_batch_size * mean, rel=0.35)
    write_run(project, found, words=20)
    assert propose(project, found, MODEL) is None  # and back again is no gain


def test_without_a_run_there_is_nothing_to_start_from(tmp_path: Path) -> None:
    project = write_run(tmp_path / "run", PLAN.replace(micro_batch_size=2))
    with pytest.raises(AdviseError) as error:
        propose(project, PLAN, MODEL)
    assert error.value.code == "unmeasured"
    assert "ftadvise poc" in error.value.hint


def test_measured_memory_decides_how_far_it_may_go(tmp_path: Path) -> None:
    """A batch of 64 by the room that is left: the more a run took than expected, the less."""
    plan = PLAN.replace(gradient_accumulation_steps=64, seq_len=1024)
    highs, factors = [], (0.8, 1.0, 1.3, 1.9)
    for i, share in enumerate(factors):
        project = write_run(tmp_path / f"run{i}", plan, share=share)
        found = propose(project, plan, MODEL)
        chosen = plan if found is None else found.plan
        highs.append(estimate_memory(chosen, MODEL, CARD).device.high)
        assert found is None or found.device_high == pytest.approx(highs[-1] * share, rel=1e-6)
    assert highs == sorted(highs, reverse=True)
    assert highs[0] > highs[-1]


def test_a_trial_that_ran_out_of_memory_is_not_proposed_again_and_shows_the_room(tmp_path: Path) -> None:
    project = write_run(tmp_path / "run", PLAN)
    tried: list[Plan] = []
    while (found := propose(project, PLAN, MODEL)) is not None:
        assert not any(is_same_plan(found.plan, plan) for plan in tried)
        high = estimate_memory(found.plan, MODEL, CARD).device.high
        assert all(high <= estimate_memory(plan, MODEL, CARD).device.expected for plan in tried)
        tried.append(found.plan)
        write_run(next_folder(project), found.plan, status="out-of-memory")
    assert len(tried) >= 2
    assert [p.name for p in sorted((project / "optimise").iterdir())] == [str(n) for n in range(1, len(tried) + 1)]


def test_a_plan_that_runs_out_of_memory_itself_is_followed_by_one_that_should_fit(tmp_path: Path) -> None:
    plan = PLAN.replace(micro_batch_size=16, gradient_accumulation_steps=1)
    project = write_run(tmp_path / "run", plan, status="out-of-memory")
    first = proposed(project, plan)
    assert (first.measured, first.expected) == (None, None)
    expected = estimate_memory(plan, MODEL, CARD).device.expected
    assert estimate_memory(first.plan, MODEL, CARD).device.high <= expected
    while (found := propose(project, plan, MODEL)) is not None:
        write_run(next_folder(project), found.plan, status="out-of-memory")
    last = gather_evidence(project, plan)[-1].plan
    assert (last.micro_batch_size, last.gradient_checkpointing) == (1, "full")


def test_runs_of_another_plan_or_that_were_stopped_tell_nothing(tmp_path: Path) -> None:
    project = write_run(tmp_path / "run", PLAN)
    write_run(project / "poc", PLAN.replace(lora_rank=8))
    write_run(project / "optimise" / "1", PLAN.replace(micro_batch_size=4), status="stopped")
    write_run(project / "optimise" / "2", PLAN.replace(micro_batch_size=2, max_steps=12), status="failed")
    assert [Path(e.folder).name for e in gather_evidence(project, PLAN)] == ["run", "2"]
    assert read_evidence(tmp_path / "nothing") is None
    assert next_folder(project).name == "3"


def test_a_proposal_leaves_the_project_as_it_is(tmp_path: Path) -> None:
    project = write_run(tmp_path / "run", PLAN)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    found = optimise(project)
    assert found.proposal is not None
    assert (found.tried, found.kept) == ((), None)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (7, 3), (100, 10), (100, 99), (100, 1000)])
def test_a_sample_has_the_longest_row_and_rows_from_everywhere(count: int, wanted: int, tmp_path: Path) -> None:
    rows = [f'{{"text": "{n}"}}\n' for n in range(count)]
    rows[count // 2] = '{"text": "the longest of all"}\n'
    (tmp_path / "all").write_text("".join(rows))
    sample_rows(tmp_path / "all", tmp_path / "some", wanted)
    found = (tmp_path / "some").read_text().splitlines(keepends=True)
    assert min(count, wanted) // 2 <= len(found) <= wanted + 1
    assert rows[count // 2] in found
    assert found == [row for row in rows if row in set(found)]
