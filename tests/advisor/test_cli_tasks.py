"""Every task from the command line: planned from its data and written out, with a plan that says so."""

import json
from pathlib import Path

import pytest

from advisor.cli.main import run
from profiles.dataset import TASK_FORMS
from profiles.platform import load_platforms

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
}  # fmt: skip
ROWS = {
    "prompt-completion": {"prompt": "1 plus 2? ", "completion": "3"},
    "text": {"text": "1 plus 2 is 3"},
    "classification": {"text": "1 plus 2 is 3", "label": "right"},
    "preference": {"prompt": "1 plus 2? ", "chosen": "3", "rejected": "4"},
    "unpaired-preference": {"prompt": "1 plus 2? ", "completion": "3", "label": True},
}
CELLS = [(name, task) for name, p in load_platforms().items() for task in p.emitted_tasks]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def write_rows(path: Path, form: str) -> str:
    path.write_text("".join(json.dumps(ROWS[form]).replace("1 plus", f"{i} plus") + "\n" for i in range(40)))
    return str(path)


def test_all_that_is_emitted_is_here() -> None:
    assert len(CELLS) == 16
    assert {task for name, task in CELLS if name == "hf"} == set(TASK_FORMS)


@pytest.mark.parametrize(("platform", "task"), CELLS)
def test_a_task_is_planned_and_written(platform: str, task: str, model: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", TASK_FORMS[task][0])  # type: ignore[index]
    out = tmp_path / "run"
    options = ["--model", model, "--gpu", "rtx4090", "--task", task, "--data", data, "--platform", platform]
    assert run(["emit", *options, "--method", "lora", "-o", str(out)]) == 0
    written = json.loads((out / "plan.json").read_text())
    assert (written["plan"]["task"], written["plan"]["platform"]) == (task, platform)
    assert written["plan"]["learning_rate"] == pytest.approx(
        {"dpo": 5e-6, "orpo": 5e-6, "kto": 5e-6, "reward": 1e-4, "grpo": 1e-5}.get(task, 2e-4)
    )
    if task == "kto":
        assert written["plan"]["micro_batch_size"] >= 2
    assert len((out / "data" / "train.jsonl").read_text().splitlines()) > 30


def test_rows_of_another_task_are_named_with_what_they_are_for(model: str, tmp_path: Path, capsys: object) -> None:
    data = write_rows(tmp_path / "rows.jsonl", "preference")
    assert run(["--model", model, "--gpu", "rtx4090", "--data", data]) == 2
    assert "--task dpo" in capsys.readouterr().err  # type: ignore[attr-defined]


def test_a_reward_of_ones_own_is_written_as_it_is(model: str, tmp_path: Path) -> None:
    judge = "def reward(completions, **columns):\n    return [float(len(x)) for x in completions]  # \u00e9 '\"'\n"
    (tmp_path / "judge.py").write_text(judge)
    data = write_rows(tmp_path / "rows.jsonl", "prompt-completion")
    options = ["--model", model, "--gpu", "rtx4090", "--task", "grpo", "--data", data, "--seq-len", "256"]
    for name, more in (("own", ["--reward", str(tmp_path / "judge.py")]), ("built-in", [])):
        assert run(["emit", *options, *more, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "own" / "reward.py").read_text() == judge
    spoken: dict[str, object] = {}
    exec((tmp_path / "built-in" / "reward.py").read_text(), spoken)
    found = spoken["reward"](["The sum is 1,003.", "3", "yes", "no"], answer=["so 1003", "4", "Yes", "yes"])  # type: ignore[operator]
    assert found == [1.0, 0.0, 1.0, 0.0]
