"""Real training on the CPU through emit and launch: a random tiny Llama, and (slow) SmolLM2-135M."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.emit import Source, emit, write_emission
from advisor.emit.huggingface_config import METHODS
from advisor.facts import resolve_model
from advisor.feedback import compare, measure_run, record_run
from advisor.launch import launchers, load_run_file
from advisor.launch.metrics import read_course
from advisor.launch.monitor import PlainLog
from benchmarks.methods_on_cpu import CELLS, tiny_plan, train, write_run, write_sums
from benchmarks.tiny_model import build_model
from estimators.methods import get_method
from profiles.errors import InvalidInputError
from profiles.plan import Plan
from profiles.store import Store
from tests.advisor.reporters import AtStep, press_ctrl_c

pytestmark = pytest.mark.platform
ROOT = Path(__file__).parents[2]
STEPS = 24


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the suite's other processes need the other core


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


def test_a_tiny_llama_learns_stops_resumes_and_its_adapter_loads(tiny: Path, sums: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run [1]", tiny_plan(tiny, max_steps=STEPS), sums)
    local = launchers()["local"]
    stopped = local.run(folder, AtStep(2, press_ctrl_c))
    assert stopped.status == "stopped", (folder / "runs/train.log").read_text()[-2000:]
    assert 2 <= stopped.step < STEPS
    with pytest.raises(InvalidInputError, match="earlier run"):
        local.run(folder, PlainLog())
    state = local.run(folder, PlainLog(), resume=True)
    assert (state.status, state.step) == ("finished", STEPS)

    course = read_course(folder / "runs" / "metrics.jsonl")
    assert [e.step for e in course.steps] == list(range(1, STEPS + 1))
    assert course.losses[-1] < course.losses[0] - 1.0
    assert course.eval_losses[-1][1] < course.eval_losses[0][1] - 1
    assert all(e.tokens and e.seconds and e.process for e in course.steps)

    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    tuned = AutoPeftModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        difference = (tuned(ids).logits - AutoModelForCausalLM.from_pretrained(tiny)(ids).logits).abs().max()
        merged = (tuned(ids).logits - tuned.merge_and_unload()(ids).logits).abs().max()
    assert difference > 0.1
    assert merged < 1e-3

    store = Store(tmp_path / "home")
    measured = record_run(folder, store)
    assert store.measurements.load() == (measured,)
    assert record_run(folder, store) == measured
    assert measured.finished
    assert measured.steps == STEPS
    assert measured.trainable_parameters == load_run_file(folder).trainable_parameters
    assert measured.environment.versions["trl"] == "1.16.0"
    lines = compare(measured, None)
    assert any("better" in line for line in lines)
    assert any("memory of the process" in line for line in lines)


def test_a_run_without_steps_is_no_measurement(tiny: Path, sums: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", tiny_plan(tiny), sums)
    with pytest.raises(InvalidInputError, match="has not logged"):
        measure_run(folder)


def test_the_cells_are_all_methods() -> None:
    assert set(CELLS) == METHODS


@pytest.mark.slow
@pytest.mark.parametrize("method", CELLS)
def test_every_method_trains_and_loads_again(method: str, tmp_path: Path) -> None:
    folder, course = train(method, tmp_path)
    assert course.start is not None
    assert course.start.trainable_parameters == load_run_file(folder).trainable_parameters
    assert course.eval_losses[-1][1] < course.eval_losses[0][1]

    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    kind = AutoPeftModelForCausalLM if get_method(method).peft_type else AutoModelForCausalLM
    kind.from_pretrained(folder / "model")
    if method == "adalora":
        pattern = json.loads((folder / "model" / "adapter_config.json").read_text())["rank_pattern"]
        assert sum(map(sum, pattern.values())) == 16 * len(pattern)  # pruned from 24 each to the target on average


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stop"), [("adalora", 3), ("adalora", 24), ("loraplus", 3), ("galore", 3), ("apollo", 3)]
)
def test_what_has_states_of_its_own_goes_on_from_its_checkpoint(
    method: str, stop: int, tiny: Path, sums: Path, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", tiny_plan(tiny, method, **{**CELLS[method], "max_steps": 30}), sums)
    local = launchers()["local"]
    assert local.run(folder, AtStep(stop, press_ctrl_c)).status == "stopped"
    assert local.run(folder, PlainLog(), resume=True).status == "finished", (folder / "runs/train.log").read_text()
    assert [step.step for step in read_course(folder / "runs" / "metrics.jsonl").steps] == list(range(1, 31))


@pytest.mark.slow
def test_smollm2_gets_better_at_held_out_instructions(tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    subprocess.run([sys.executable, ROOT / "demo" / "prepare.py", assets], check=True)
    plan = Plan(
        model=str(assets / "model"), gpu="cpu", quantization="fp32", gradient_checkpointing="none", seq_len=128,
        micro_batch_size=4, max_steps=16, learning_rate=1e-3, lr_scheduler="linear", eval_fraction=0.08,
    )  # fmt: skip
    folder = write_run(tmp_path / "run", plan, assets / "instructions.jsonl")
    assert launchers()["local"].run(folder, PlainLog()).status == "finished"
    measured = measure_run(folder)
    assert measured.trainable_parameters == 4_884_480
    assert measured.eval_loss_before is not None
    assert measured.eval_loss_after is not None
    assert measured.eval_loss_after < measured.eval_loss_before - 0.03


MARKED_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ODD_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
CHAT = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["chat", "chat of an unknown template", "chat without a template", "text", "plain"])
def test_each_form_of_rows_trains_or_says_why_not(case: str, tmp_path: Path) -> None:
    model = build_model(tmp_path / "model")
    template = model / "chat_template.jinja"
    if case == "chat":
        template.write_text(MARKED_TEMPLATE)
    elif case == "chat of an unknown template":
        template.write_text(ODD_TEMPLATE)
    elif case == "chat without a template":
        template.unlink()
    row, form = {"text": ({"text": "one is 1"}, "text"), "plain": ({"prompt": "one", "completion": "1"}, None)}.get(
        case, ({"messages": CHAT * 2}, "messages")
    )
    plan = tiny_plan(model, max_steps=2, packing=case == "text", early_stopping_patience=1)
    source = Source(model_ref=str(model), form=form or "prompt-completion", held_out=False)

    def add_data(out: Path) -> None:
        (out / "data").mkdir()
        (out / "data" / "train.jsonl").write_text((json.dumps(row) + "\n") * 20)

    folder = write_emission(emit(plan, resolve_model(str(model)), source), tmp_path / "run", add_data=add_data)
    state = launchers()["local"].run(folder, PlainLog())
    log = (folder / "runs" / "train.log").read_text()
    assert state.status == ("failed" if case == "chat without a template" else "finished"), log[-2000:]
    assert ("no chat template" in log) == (case == "chat without a template")
    assert ("the last answer is learned" in log) == (case == "chat of an unknown template")
