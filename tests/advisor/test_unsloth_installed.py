"""Unsloth's projects against the installed package, in its own environment, as far as a machine without a GPU goes.

Run by `make prove-unsloth`; FTADVISE_UNSLOTH_PYTHON names another interpreter. Not shown here: loading, Unsloth's
layers, kernels and checkpoints. Adapters are put on by its own code, but training goes through transformers' layers.
"""

import json
import os
import signal
import subprocess
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from advisor.dataset import read_dataset, split, write_normalised
from advisor.emit import Source, emit, write_emission
from advisor.emit.unsloth import EMITTER, METHODS
from advisor.facts import resolve_model
from advisor.launch.metrics import Course, read_course
from benchmarks.tiny_model import build_model
from estimators.methods import get_method
from estimators.regime import runs_unsloth_layers
from profiles.catalog import load_optimizers
from profiles.families import describe_model
from profiles.model import ModelSpec
from profiles.plan import Plan

pytestmark = [pytest.mark.slow, pytest.mark.platform]
SCRIPTS = Path(__file__).parents[1] / "unsloth"
GOLDEN = Path(__file__).parents[1] / "golden" / "unsloth_signatures.json"
BASE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), BASE),
    "gemma2": BASE | {"head_dim": 32},
    "gemma3_text": BASE | {"sliding_window_pattern": 2},
    "phi3": BASE | {"pad_token_id": 0},
    **dict.fromkeys(("olmo2", "gpt_neox", "starcoder2", "falcon"), BASE),
    "mixtral": BASE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": BASE | EXPERTS,
}
CELLS = [("lora", "bf16"), ("lora", "int8"), ("qlora", "nf4-dq"), ("dora", "bf16"), ("rslora", "bf16"), ("pissa", "bf16")]  # fmt: skip # noqa: E501


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of Unsloth's environment."""
    named = os.environ.get("FTADVISE_UNSLOTH_PYTHON")
    if named is None:
        environments = pytest.importorskip("advisor.environments", reason="no environments yet")
        found = environments.find_environment("unsloth")
        named = found.python if found is not None and found.state == "ready" else None
    if named is None:
        pytest.skip("no environment of Unsloth: `ftadvise env create unsloth --cpu`, or FTADVISE_UNSLOTH_PYTHON")
    return named


def ask(python: str, script: str, given: Any, folder: Path) -> Any:
    """What the script prints, as JSON; Unsloth leaves generated code in the folder where it runs."""
    child = subprocess.run(
        [python, SCRIPTS / script], input=json.dumps(given), cwd=folder, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout)


def spec(family: str) -> ModelSpec:
    return describe_model({"model_type": family, **FAMILIES[family]}, family)


def plan(family: str, method: str, quantization: str, **changes: Any) -> Plan:
    values = {"model": family, "gpu": "rtx4090", "platform": "unsloth", "method": method, "quantization": quantization}
    return Plan.model_validate({**values, "seq_len": 512, "lora_rank": 4, **changes})


def test_the_recorded_signatures_are_the_installed_ones(python: str, tmp_path: Path) -> None:
    assert ask(python, "signatures.py", None, tmp_path) == json.loads(GOLDEN.read_text())


def test_every_plan_that_is_emitted_is_accepted(python: str, tmp_path: Path) -> None:
    """The whole space: what the emitter does not refuse, the installed classes build."""
    texts, refused = [], 0
    spaces = product(
        ("llama", "qwen3_moe"), sorted(METHODS), ("bf16", "fp16", "fp32", "int8", "nf4", "nf4-dq", "fp4"),
        sorted(load_optimizers()), ("none", "full", "unsloth"), ("none", "ddp", "fsdp2", "zero2"), ("sft", "pretrain"),
        (False, True),
    )  # fmt: skip
    for family, method, stored, optimizer, checkpointing, sharding, task, packing in spaces:
        if method == "lora" and stored in ("nf4", "nf4-dq", "fp4"):
            continue  # the plan calls it qlora
        wanted = plan(
            family, method, stored, optimizer=optimizer, gradient_checkpointing=checkpointing, task=task,
            sharding=sharding, n_gpus=1 if sharding == "none" else 2, packing=packing,
        )  # fmt: skip
        source = Source(model_ref="org/model", form="text" if task == "pretrain" else "prompt-completion")
        model = spec(family)
        if get_method(method).refusal(model, wanted) or EMITTER.refusal(wanted, model, source):
            refused += 1
            continue
        files = emit(wanted, model, source).files
        compile(files["train.py"], "train.py", "exec")
        texts.append(files["config.yaml"])
    answer = ask(python, "accept.py", sorted(set(texts)), tmp_path)
    assert answer["faults"] == []
    assert (len(texts), refused) == (5904, 46512)
    assert answer["count"] == len(set(texts)) == 1440


def test_unsloths_own_adapters_have_the_predicted_parameters(python: str, tmp_path: Path) -> None:
    cases, predicted, refused = [], [], []
    for family, (method, stored) in product(FAMILIES, CELLS):
        wanted, model = plan(family, method, stored), spec(family)
        if get_method(method).refusal(model, wanted):
            refused.append((family, stored))
            continue
        config = yaml.safe_load(emit(wanted, model, Source(model_ref="x")).files["config.yaml"])
        cases.append(
            {
                "config": {"model_type": family, **FAMILIES[family]},
                "adapter": config["adapter"],
                "fused": runs_unsloth_layers(wanted, model),
            }
        )
        predicted.append(get_method(method).trainable_parameters(model, wanted))
    assert refused == [("falcon", "int8"), ("falcon", "nf4-dq")]  # its linears are of a class of its own
    assert len(cases) + len(refused) == len(FAMILIES) * len(CELLS) == 84
    assert sum(case["fused"] for case in cases) == 6 * 5  # six families, and int8 never
    assert ask(python, "adapters.py", cases, tmp_path) == predicted


def write_run(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """A project over a random tiny Llama; base weights as the CPU has them, since loading is replaced."""
    model = build_model(folder / "base")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = split(read_dataset(folder / "rows.jsonl"), 0.1, 0)
    given = {
        "model": str(model), "gpu": "rtx4090", "platform": "unsloth", "method": "qlora", "seq_len": 512,
        "micro_batch_size": 8, "max_steps": 8, "learning_rate": 1e-2, "gradient_checkpointing": "unsloth",
    }  # fmt: skip
    wanted = Plan.model_validate({**given, **changes})

    def add_data(out: Path) -> None:
        write_normalised(parts.train, out / "data" / "train.jsonl")
        write_normalised(parts.evaluation, out / "data" / "eval.jsonl")

    source = Source(model_ref=str(model), form=parts.train.format.form)
    return write_emission(emit(wanted, resolve_model(str(model)), source), folder / "run", add_data=add_data)


def start(python: str, run: Path, *more: str) -> "subprocess.Popen[bytes]":
    log = (run / "log").open("ab")
    return subprocess.Popen([python, SCRIPTS / "train_on_cpu.py", *more], cwd=run, stdout=log, stderr=log)


def finish(python: str, run: Path, *more: str) -> tuple[Course, list[str]]:
    """Train; the course of the run, and what the first three rows teach."""
    assert start(python, run, *more).wait() == 0, (run / "log").read_text()[-3000:]
    return read_course(run / "runs" / "metrics.jsonl"), json.loads((run / "runs" / "learned.json").read_text())


SUMS = [{"prompt": f"{i} plus {j}? ", "completion": f"It is {i + j}."} for i in range(10) for j in range(10)]


def test_the_project_trains_on_answers_only_and_its_adapter_loads(python: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, SUMS)
    course, learned = finish(python, run)
    assert course.start is not None
    assert course.start.trainable_parameters == json.loads((run / "plan.json").read_text())["trainable_parameters"]
    assert [step.step for step in course.steps] == list(range(1, 9))
    assert all(step.tokens and step.seconds for step in course.steps)
    assert course.eval_losses[-1][1] < course.eval_losses[0][1] - 0.3
    assert len(learned) == 3
    assert all(text.startswith("It is ") and text.endswith(".<|im_end|>") for text in learned)

    from peft import AutoPeftModelForCausalLM

    AutoPeftModelForCausalLM.from_pretrained(run / "model")


def test_of_a_chat_the_answers_are_learned(python: str, tmp_path: Path) -> None:
    rows = []
    for i in range(30):
        turns = [("user", f"{i}?"), ("assistant", "It is small."), ("user", "more?"), ("assistant", "It is 2.")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    run = write_run(tmp_path, rows, max_steps=2)
    _, learned = finish(python, run)
    assert {text.strip() for text in learned} == {"It is 2.<|im_end|>"}  # TRL does not know this template


def test_a_stopped_run_goes_on_from_its_checkpoint(python: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, SUMS)
    child = start(python, run)
    metrics = run / "runs" / "metrics.jsonl"
    while child.poll() is None and len(read_course(metrics).steps) < 3:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.wait() == 130, (run / "log").read_text()[-3000:]
    stopped = read_course(metrics).steps[-1].step
    assert 3 <= stopped < 8
    course, _ = finish(python, run, "--resume")
    assert [step.step for step in course.steps] == list(range(1, 9))
