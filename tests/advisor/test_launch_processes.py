"""Two processes on this CPU, over gloo, through accelerate: copies (DDP) and shares (FSDP2) of a tiny Llama."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from advisor.launch import launchers, load_run_file, read_state
from advisor.launch.metrics import read_course
from advisor.launch.monitor import PlainLog
from advisor.launch.stop import stop_run
from benchmarks.methods_on_cpu import tiny_plan, write_run, write_sums
from benchmarks.tiny_model import build_model
from tests.advisor.reporters import AtStep, press_ctrl_c

pytestmark = [pytest.mark.platform, pytest.mark.slow]
STEPS = 24
CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {},
    "fsdp2, whole model, offloaded": {"method": "full", "offload_parameters": True, "offload_optimizer": True},
}
CURVES: dict[str, list[float]] = {}  # of the cases so far


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two processes on as few as two cores


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


def write(tmp_path: Path, tiny: Path, sharding: str, **changes: Any) -> Path:
    rows = write_sums(tmp_path / "sums.jsonl")
    plan = tiny_plan(tiny, n_gpus=2, micro_batch_size=4, sharding=sharding, **{"max_steps": STEPS, **changes})
    return write_run(tmp_path / "run", plan, rows)


def log(folder: Path) -> str:
    return (folder / "runs" / "train.log").read_text()[-3000:]


def result_loss(folder: Path, base: Path) -> float:
    """Mean loss a token of the held-out answers, by what plain PEFT or transformers load from model/."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = (folder / "model" / "adapter_config.json").is_file()
    kind = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    tuned = kind.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    total = count = 0.0
    for line in (folder / "data" / "eval.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        ids = torch.tensor([tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        tokens = int((labels != -100).sum())
        total += tuned(ids, labels=labels).loss.item() * tokens
        count += tokens
    return total / count


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_stop_resume_and_their_result_loads(case: str, tiny: Path, tmp_path: Path) -> None:
    sharding = case.split(",")[0]
    folder = write(tmp_path, tiny, sharding, **CASES[case])
    local = launchers()["local"]
    stopped = local.run(folder, AtStep(2, press_ctrl_c))
    assert stopped.status == "stopped", log(folder)
    assert 2 <= stopped.step < STEPS
    state = local.run(folder, PlainLog(), resume=True)
    assert (state.status, state.step) == ("finished", STEPS), log(folder)

    course = read_course(folder / "runs" / "metrics.jsonl")
    assert course.start is not None
    assert course.start.processes == 2
    assert course.start.trainable_parameters == load_run_file(folder).trainable_parameters
    assert [event.step for event in course.steps] == list(range(1, STEPS + 1))  # one process tells
    assert course.losses[-1] < course.losses[0] - 0.5
    CURVES[case] = course.losses
    shares = list((folder / "runs" / "checkpoints").glob("checkpoint-*/pytorch_model_fsdp.bin"))
    assert bool(shares) is (sharding == "fsdp2")  # what FSDP gathered; DDP gathers nothing
    assert result_loss(folder, tiny) == pytest.approx(course.eval_losses[-1][1], abs=0.02)


def test_shares_learn_as_copies_do() -> None:
    if not {"ddp", "fsdp2"} <= set(CURVES):
        pytest.skip("compares the runs of the tests above")
    assert CURVES["ddp"] == pytest.approx(CURVES["fsdp2"], abs=1e-2)


def test_two_nodes_train_together(tiny: Path, tmp_path: Path) -> None:
    rows = write_sums(tmp_path / "sums.jsonl")
    plan = tiny_plan(tiny, n_gpus=2, micro_batch_size=4, sharding="ddp", max_steps=6)
    folder = write_run(tmp_path / "run", plan, rows, cluster="slurm", nodes=2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = {**os.environ, "NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    nodes = [
        subprocess.Popen([sys.executable, folder / "node.py"], env={**place, "NODE_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [node.wait(600) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    course = read_course(folder / "runs" / "metrics.jsonl")
    assert course.start is not None
    assert course.start.processes == 2
    assert [event.step for event in course.steps] == list(range(1, 7))
    assert (folder / "model" / "adapter_model.safetensors").is_file()


def test_another_stops_it(tiny: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny, "fsdp2", max_steps=2000)
    stop = threading.Thread(target=stop_run, args=(folder,))
    state = launchers()["local"].run(folder, AtStep(3, stop.start))
    stop.join()
    assert state.status == "stopped", log(folder)
    again = read_state(folder)
    assert again is not None
    assert again.status == "stopped"
    assert again.step < 2000


def test_why_a_process_failed_is_told(tiny: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny, "ddp")
    (folder / "data" / "train.jsonl").write_text('{"prompt": "no completion"}\n')
    state = launchers()["local"].run(folder, PlainLog())
    assert state.status == "failed"
    assert "ChildFailedError" not in state.message
    assert "Error" in state.message
