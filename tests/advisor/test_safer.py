"""The next safer plan: same sequences a step, less memory, and never over what a person has written."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from advisor.emit import Source, emit, write_emission
from advisor.facts import resolve_model
from advisor.launch import load_run_file
from advisor.launch.folder import RunState
from advisor.safer import describe_change, safer_plan, take_safer_plan
from estimators.memory import estimate_memory
from estimators.methods import get_method
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.gpu import Hardware
from profiles.plan import Plan

MODEL = resolve_model("llama-8b")
CARD = Hardware(gpu=find_gpu("rtx4090"), n_gpus=1, origin="named")
SHORT = RunState(status="out-of-memory", started="x", step=3, message="out of memory: 2 GiB more")


@given(
    micro=st.integers(1, 96),
    accumulation=st.integers(1, 7),
    checkpointing=st.sampled_from(["none", "full"]),
    method=st.sampled_from(["lora", "qlora", "full", "prefix"]),
)
def test_each_step_needs_less_and_learns_the_same_until_none_is_left(
    micro: int, accumulation: int, checkpointing: str, method: str
) -> None:
    plan: Plan | None = Plan.model_validate(
        {
            "model": "llama-8b", "method": method, "gpu": "rtx4090", "micro_batch_size": micro, "seq_len": 512,
            "gradient_accumulation_steps": accumulation, "gradient_checkpointing": checkpointing,
        }
    )  # fmt: skip
    assert plan is not None
    assume(get_method(method).refusal(MODEL, plan) is None)
    first, steps = plan, 0
    while (safer := safer_plan(plan, MODEL, CARD)) is not None:
        before, after = (estimate_memory(p, MODEL, CARD).device.expected for p in (plan, safer))
        assert after < before
        assert safer.global_batch_size == first.global_batch_size
        same = {"micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}
        assert safer.model_dump(exclude=same) == first.model_dump(exclude=same)
        plan, steps = safer, steps + 1
    assert steps <= 8
    if method != "full":  # its gradients and the optimizer's step outweigh what a batch holds
        assert plan.micro_batch_size == 1
        assert plan.gradient_checkpointing == "full" or method == "prefix"


def write_project(folder: Path, **changes: object) -> Path:
    plan = Plan.model_validate(
        {"model": "llama-8b", "gpu": "rtx4090", "micro_batch_size": 2, "seq_len": 512, **changes}
    )
    emission = emit(plan, MODEL, Source(model_ref="meta-llama/Llama-3.1-8B"))
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text("mine\n")
    return write_emission(emission, folder, force=True)


def test_a_project_is_rewritten_and_keeps_the_story(tmp_path: Path) -> None:
    folder = write_project(tmp_path / "run", gradient_checkpointing="none")
    first = take_safer_plan(folder, SHORT)
    assert first is not None
    assert first.changes == {"micro_batch_size": (2, 1), "gradient_accumulation_steps": (1, 2)}
    assert "per_device_train_batch_size: 1\n" in (folder / "config.yaml").read_text()
    second = take_safer_plan(folder, SHORT)
    assert second is not None
    assert second.changes == {"gradient_checkpointing": ("none", "full")}
    assert "2 GiB more; the next safer plan: gradient_checkpointing none -> full" in describe_change(second)
    run = load_run_file(folder)
    assert run.history == (first, second)
    assert run.forecast is not None
    assert take_safer_plan(folder, SHORT) is None
    assert load_run_file(folder) == run
    assert (folder / "data" / "train.jsonl").read_text() == "mine\n"


def test_what_a_person_has_edited_is_left_alone(tmp_path: Path) -> None:
    folder = write_project(tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("seed: 42", "seed: 7"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(AdviseError, match=r"config\.yaml differ") as error:
        take_safer_plan(folder, SHORT)
    assert error.value.code == "edited-project"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
