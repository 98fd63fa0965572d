"""`ftadvise explain`: a plan, an emitted plan.json or a JSON answer as plain sentences."""

import io
import json
import sys
from typing import get_args

import pytest

from advisor.api import advise
from advisor.cli.main import run
from advisor.render.story import render_story
from advisor.story import CHECKPOINTING, SHARDING, TASKS, find_plan, tell
from profiles.plan import Checkpointing, Plan, Sharding, Task

PLAN = {"model": "llama-8b", "gpu": "rtx4090", "method": "qlora", "seq_len": 1024, "learning_rate": 2e-4}


def text(**fields):
    story = tell(Plan.model_validate({**PLAN, **fields}), offline=True)
    return story, " ".join(" ".join(sentences) for sentences in story.chapters.values())


def test_a_story_names_what_counts_and_its_numbers_are_those_of_the_estimate():
    story, said = text()
    assert story.verdict == "fits"
    for words in ("QLoRA", "8.03B parameters", "41.94M parameters (0.52 %)", "nf4-dq",
                  "sequences of up to 1024 tokens", "learning rate of 0.0002", "5% of the examples", "of 23.52 GiB",
                  "base weights", "tokens a second"):  # fmt: skip
        assert words in said
    assert set(story.chapters) == {"What", "Memory", "Speed", "Why", "Risks"}
    for sentences in story.chapters.values():
        assert all(s[0].isupper() or not s[0].isalpha() or s.startswith("nf4") for s in sentences)
        assert all(s.endswith(".") for s in sentences)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "full", "quantization": "bf16"}, "It does not fit"),
        ({"method": "full", "quantization": "bf16"}, "all of them"),
        ({"method": "full", "quantization": "bf16", "learning_rate": None}, "K2, forgetting"),
        ({"n_gpus": 2, "sharding": "ddp"}, "on each of 2 cards"),
        ({"n_gpus": 2, "sharding": "fsdp2"}, "split over the cards"),
        ({"gradient_checkpointing": "none"}, "activations are kept"),
        ({"gpu": "t4"}, "4-bit with fp16 compute"),
        ({"early_stopping_patience": 3}, "stops early after 3"),
        ({"platform": "unsloth", "gradient_checkpointing": "unsloth"}, "run by us on an H200"),
        ({"platform": "unsloth", "method": "lora", "quantization": "int8"}, "never run by us: int8"),
        ({"platform": "unsloth", "n_gpus": 2, "sharding": "ddp"}, "never run by us: several cards"),
        ({"n_gpus": 2, "sharding": "ddp"}, "run by us on a CPU"),
        ({"gpu": {"memory_gib": 24}}, "Its speed is not known"),
        ({"model": "bert-base", "method": "lora", "quantization": "fp32", "task": "classification", "seq_len": 128},
         "classification"),
    ],
)  # fmt: skip
def test_each_choice_has_its_sentence(fields, words):
    assert words in text(**fields)[1]


def test_a_method_beyond_the_framework_is_told_with_what_is_known_of_it():
    _, said = text(method="dora", quantization="bf16", gpu="a100-80g")
    assert "DoRA .469 against LoRA's" in said
    assert "in no comparison of the platforms" in said
    assert "No evidence on its quality was collected" in text(method="vera", quantization="bf16", gpu="a100-80g")[1]


def test_every_value_of_the_plan_has_words():
    assert set(CHECKPOINTING) == set(get_args(Checkpointing))
    assert set(SHARDING) == set(get_args(Sharding)) - {"none"}
    assert set(TASKS) == set(get_args(Task))


def test_the_recommended_plan_is_told_with_the_recommended_memory():
    best = advise({"model": "llama-8b", "gpu": "rtx4090", "offline": True}).best
    story = tell(best.plan, offline=True)
    assert story.verdict == "fits"
    assert f"{best.memory.device.expected / 2**30:.2f} GiB" in story.chapters["Memory"][0]


def test_a_plan_is_found_wherever_it_stands():
    for holder in (PLAN, {"plan": PLAN}, {"best": {"plan": PLAN}}, {"answer": {"plan": PLAN}}, {"answer": {"best": {"plan": PLAN}}}):  # fmt: skip # noqa: E501
        assert find_plan(holder) == PLAN
    assert find_plan({"answer": {"best": None}}) == {"answer": {"best": None}}


def test_the_command_reads_files_and_pipes(capsys, monkeypatch, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    assert run(["explain", str(path), "--offline"]) == 0
    assert capsys.readouterr().out.startswith("Fits\n")
    assert run(["advise", "--model", "llama-8b", "--gpu", "rtx4090", "--offline", "--json"]) == 0
    answer = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(answer.encode()), encoding="utf-8"))
    assert run(["explain", "-", "--offline", "--json"]) == 0
    story = json.loads(capsys.readouterr().out)["answer"]
    assert story["plan"] == json.loads(answer)["answer"]["best"]["plan"]


def test_the_command_tells_an_emitted_run(capsys, tmp_path):
    assert run(["emit", "--model", "llama-8b", "--gpu", "rtx4090", "--offline", "-o", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert run(["explain", str(tmp_path / "run" / "plan.json"), "--offline"]) == 0
    assert "LoRA on Unsloth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (json.dumps({**PLAN, "method": "full", "quantization": "bf16"}), 1, ""),
        ("{", 2, "is not JSON"),
        (json.dumps({**PLAN, "seq_len": 0}), 2, "plan.seq_len"),
        (json.dumps({**PLAN, "model": "no-such-model"}), 2, "no-such-model"),
        (json.dumps({**PLAN, "method": "bitfit", "quantization": "bf16"}), 2, "no bias"),
    ],
)
def test_exit_codes(capsys, tmp_path, content, code, words):
    path = tmp_path / "plan.json"
    path.write_text(content)
    assert run(["explain", str(path), "--offline"]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("width", [60, 100])
def test_pages_keep_their_width(width):
    page = str(render_story(text()[0], width))
    assert max(map(len, page.splitlines())) <= width


def test_a_plan_beyond_the_framework_is_emitted_and_told_from_its_folder(capsys, tmp_path):
    path, folder = tmp_path / "plan.json", tmp_path / "run"
    path.write_text(json.dumps({**PLAN, "method": "dora", "quantization": "bf16"}))
    words = ["--model", "llama-8b", "--gpu", "rtx4090", "--offline"]
    assert run(["emit", "--plan", str(path), *words, "-o", str(folder)]) == 0
    capsys.readouterr()
    assert run(["explain", str(folder / "plan.json"), "--offline"]) == 0
    assert "DoRA" in capsys.readouterr().out
