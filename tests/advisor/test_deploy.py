"""Deployment without any training: a run folder with a result that was made by hand."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from advisor.cli.commands.deploy import command
from advisor.deploy import deploy
from advisor.deploy import vllm as hand_over
from advisor.deploy.card import model_card
from advisor.deploy.gguf import SCRIPT, VARIABLE, convert, find_converter
from advisor.deploy.merge import TOLERANCE, MergeCheck, merge
from advisor.deploy.result import read_result
from advisor.emit import Source
from advisor.launch import load_run_file
from profiles.errors import AdviseError, InvalidInputError, UnsupportedError
from tests.advisor.test_launch_feedback import gpu_events, make_run

LORA = {"peft_type": "LORA", "r": 16, "init_lora_weights": True, "bias": "none"}


def finished(folder: Path, adapter: dict[str, Any] | None = LORA, base: str = "org/base-1b", **plan: Any) -> Path:
    make_run(folder, gpu_events())
    run = load_run_file(folder)
    changed = run.replace(plan=run.plan.replace(**plan), source=Source(model_ref=base))
    (folder / "plan.json").write_text(changed.model_dump_json())
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    model = folder / "model"
    model.mkdir()
    (model / ("config.json" if adapter is None else "adapter_config.json")).write_text(json.dumps(adapter or {}))
    (model / ("model.safetensors" if adapter is None else "adapter_model.safetensors")).write_bytes(b"weights")
    for name in ("tokenizer.json", "training_args.bin", "README.md"):
        (model / name).write_text(name)
    return folder


def header(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_an_adapter_is_copied_without_what_is_of_the_training(tmp_path: Path) -> None:
    deployed = deploy(finished(tmp_path / "run"), "adapter", tmp_path / "out")
    assert deployed.files == ("README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(deployed.files)
    assert deployed.merge is None
    assert deployed.holds


def test_a_whole_model_needs_no_merging(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", None, method="full")
    deployed = deploy(folder, "merged", tmp_path / "out")
    assert deployed.files == ("README.md", "config.json", "model.safetensors", "tokenizer.json")
    with pytest.raises(UnsupportedError, match="there is no adapter"):
        deploy(folder, "adapter", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_card_says_what_was_measured(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    deploy(folder, "adapter", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    found = header(card)
    assert (found["base_model"], found["base_model_relation"], found["library_name"]) == (
        "org/base-1b", "adapter", "peft",
    )  # fmt: skip
    for words in (
        "held-out lines: loss 3.5000 before, 2.5000 after", "400 tokens/s", "peak memory reserved: 3.00 GiB",
        "2x NVIDIA L4", "torch 2.13.0", "train.jsonl: 2 rows, sha256 `",
    ):  # fmt: skip
        assert words in card
    assert str(tmp_path) not in card  # it may be published


@pytest.mark.parametrize(
    "base",
    ["/home/someone/model", "a: b\n---\n# title", "`rm -rf`\n- x", "org/na\u2028me", "x" * 500, "---", "!!python/x"],
)
def test_nothing_in_a_name_breaks_the_card(base: str, tmp_path: Path) -> None:
    result = read_result(finished(tmp_path / "run", base=base))
    lines = model_card(result, "merged", None, "use", []).split("\n")
    assert lines.count("---") == 2
    assert [line for line in lines if line.startswith("#")] == [
        "# `run`", "## Use", "## Measured", "## Trained",
    ]  # fmt: skip
    assert "base_model" not in header("\n".join(lines))  # none of these is a hub id
    assert "/home/someone" not in "\n".join(lines)


def test_a_merge_that_changes_the_model_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = MergeCheck(base="b", dtype="bfloat16", tokens=256, divergence=TOLERANCE * 1.1, same_choice=0.9)
    monkeypatch.setattr("advisor.deploy.write.merge", lambda *args, **kwargs: check)
    monkeypatch.setattr("advisor.deploy.write._python", lambda *args: "python")
    folder = finished(tmp_path / "run")
    ended = CliRunner().invoke(command, [str(folder), "-o", str(tmp_path / "out")], standalone_mode=False)
    assert ended.return_value == 1
    assert "NOT as the adapter" in (tmp_path / "out" / "README.md").read_text()
    check = check.replace(divergence=TOLERANCE / 2)
    ended = CliRunner().invoke(command, [str(folder), "-o", str(tmp_path / "o2"), "--json"], standalone_mode=False)
    assert ended.return_value == 0
    assert '"merge": {' in ended.output


def test_what_cannot_be_merged_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    soft = finished(tmp_path / "a", {"peft_type": "PROMPT_TUNING"}, method="prompt")
    with pytest.raises(UnsupportedError, match="cannot be merged"):
        deploy(soft, "gguf", tmp_path / "out")
    classifier = finished(tmp_path / "b", task="classification")
    with pytest.raises(UnsupportedError, match="the task classification"):
        deploy(classifier, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_result_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", gpu_events(end="stopped"))
    with pytest.raises(InvalidInputError, match="no finished result"):
        deploy(folder, "adapter", tmp_path / "out")


def test_a_folder_is_overwritten_only_by_force(tmp_path: Path) -> None:
    folder, out = finished(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="is not empty"):
        deploy(folder, "adapter", out)
    assert (out / "README.md").read_text() == "mine"
    deploy(folder, "adapter", out, force=True)
    assert (out / "README.md").read_text() != "mine"
    assert (out / "notes.txt").read_text() == "mine"


def test_a_failed_merge_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Traceback' >&2; echo 'ValueError: no such weights' >&2; exit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(AdviseError, match="ValueError: no such weights") as error:
        merge(str(python), "base", tmp_path, tmp_path / "out", ["a"], parameters=1000)
    assert error.value.code == "merge-failed"


def test_short_memory_is_seen_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(AdviseError, match=r"merging needs .* of main memory") as error:
        merge("no-python", "base", tmp_path, tmp_path / "out", ["a"], parameters=10**15)
    assert error.value.code == "memory-short"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "OFT"}, "LoRA adapters only"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "a changed base"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": 1024}, "ends at 512"),
    ],
)
def test_vllm_gets_the_merged_model_where_it_cannot_load_the_adapter(changes: dict[str, Any], words: str) -> None:
    assert hand_over.adapter_refusal(LORA) is None
    assert words in str(hand_over.adapter_refusal({**LORA, **changes}))


def test_vllms_settings_name_the_adapter_by_values_only(tmp_path: Path) -> None:
    out = tmp_path / "it's {odd}: \n dir"
    deployed = deploy(finished(tmp_path / "run", quantization="nf4-dq", method="qlora"), "vllm", out)
    settings = yaml.safe_load((out / "vllm.yaml").read_text())
    assert settings["model"] == "org/base-1b"
    assert settings["max-lora-rank"] == 16
    assert json.loads(settings["lora-modules"][0]) == {"name": "run", "path": str(out)}
    assert any("not run vLLM" in note for note in deployed.notes)
    assert any("trained over the base in nf4-dq" in note for note in deployed.notes)
    assert yaml.safe_load(hand_over.serve_settings("n", out))["model"] == str(out)


def test_the_converter_is_found_by_name_by_variable_or_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(AdviseError, match="not at hand") as error:
        find_converter()
    assert "--llama-cpp" in error.value.hint
    script = tmp_path / SCRIPT
    with pytest.raises(InvalidInputError, match="is no file"):
        find_converter(str(tmp_path))
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert find_converter(str(tmp_path)) == find_converter(str(script)) == script
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert find_converter() == script
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_converter() == script


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("exit 1", "it printed nothing"),
        ("printf nothing > $3", "no GGUF file"),
        ("printf GGUF123 > $3", "no GGUF file"),
    ],
)
def test_a_converter_that_fails_is_seen(says: str, words: str, tmp_path: Path) -> None:
    script = tmp_path / "converter"
    script.write_text(says + "\n")
    with pytest.raises(AdviseError, match=words) as error:
        convert("/bin/sh", script, tmp_path, tmp_path / "out", "auto")
    assert error.value.code == "conversion-failed"
