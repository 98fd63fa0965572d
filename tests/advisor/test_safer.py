"""The next safer plan: same sequences a step, less memory, and never over what a person has written."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from advisor.emit import Source, emit, write_emission
from advisor.facts import resolve_model
from advisor.launch import load_run_file
from advisor.launch.folder import RunState
from advisor.safer import available_share, ceiling, describe_change, safer_plan, take_safer_plan
from estimators.memory import estimate_memory
from estimators.methods import get_method
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.gpu import Hardware
from profiles.plan import Plan

MODEL = resolve_model("llama-8b")
CARD = Hardware(gpu=find_gpu("rtx4090"), n_gpus=1, origin="named")
SHORT = RunState(status="out-of-memory", started="x", step=3, message="out of memory: 2 GiB more")

CUDA = (
    "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted}. GPU 0 has a total capacity "
    "of 23.52 GiB of which {free} is free. Including non-PyTorch memory, this process has {held} memory in use."
)


def runs(plan: Plan) -> bool:
    return get_method(plan.method).refusal(MODEL, plan) is None


def smaller(plan: Plan) -> list[Plan]:
    """By hand: every way of `safer_plan` from here."""
    sequences, sizes = plan.micro_batch_size * plan.gradient_accumulation_steps, [plan.micro_batch_size]
    while sizes[-1] > 1:
        sizes.append(max(n for n in range(1, sizes[-1] // 2 + 1) if sequences % n == 0))
    found = [plan.replace(micro_batch_size=n, gradient_accumulation_steps=sequences // n) for n in sizes]
    return found[1:] + [p.replace(gradient_checkpointing="full") for p in found if p.gradient_checkpointing == "none"]


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
        possible = (estimate_memory(p, MODEL, CARD).device for p in smaller(plan) if runs(p))
        if all(need.high > ceiling(estimate_memory(plan, MODEL, CARD)) for need in possible):
            assert after == min(estimate_memory(p, MODEL, CARD).device.expected for p in smaller(plan) if runs(p))
        else:
            high = estimate_memory(safer, MODEL, CARD).device.high
            assert high <= ceiling(estimate_memory(plan, MODEL, CARD)) <= before
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


def test_the_message_says_how_much_was_missing() -> None:
    assert available_share(CUDA.format(wanted="2.00 GiB", free="512.00 MiB", held="22.00 GiB")) == 22.5 / 24
    assert available_share(CUDA.format(wanted="0 bytes", free="1.00 KiB", held="3.00 KiB")) == 1.0
    assert available_share("out of memory: can't allocate memory: you tried to allocate 8388608 bytes") == 1.0


def test_the_more_was_missing_the_smaller_the_next_plan() -> None:
    plan = Plan(model="llama-8b", gpu="rtx4090", method="qlora", micro_batch_size=16, seq_len=1024)
    sizes = []
    for free, wanted in (("2.00 GiB", "2.00 GiB"), ("0 bytes", "16.00 GiB"), ("0 bytes", "90.00 GiB")):
        safer = safer_plan(plan, MODEL, CARD, CUDA.format(wanted=wanted, free=free, held="20.00 GiB"))
        assert safer is not None
        sizes.append(safer.micro_batch_size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8
    assert sizes[-1] == 1
