"""Deployment of what was really trained: the merged weights and the GGUF file are loaded again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from advisor.deploy import Tools, deploy
from advisor.deploy.gguf import VARIABLE
from advisor.deploy.merge import merge
from advisor.emit.huggingface_config import METHODS, SOFT_PROMPTS
from advisor.emit.peft_config import peft_config
from advisor.facts import resolve_model
from advisor.general_text import write_general_text
from advisor.launch import launchers
from advisor.launch.monitor import PlainLog
from benchmarks.methods_on_cpu import CELLS, tiny_plan, write_run, write_sums
from benchmarks.tiny_model import build_model
from estimators.methods import get_method
from tests.advisor.test_launch_llamafactory import write_run as write_llamafactory

pytestmark = [pytest.mark.platform, pytest.mark.slow]
MERGED = sorted(m for m in METHODS - SOFT_PROMPTS if get_method(m).peft_type and m != "pissa")
TEXTS = ["The sum is 12.", "3 plus 4?", "def f(x):\n    return x", "äöü 你好"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def trained(folder: Path, model: Path, method: str = "lora", **changes: Any) -> Path:
    run = write_run(
        folder / "run", tiny_plan(model, method, **{"max_steps": 4, **changes}), write_sums(folder / "s.jsonl")
    )
    assert launchers()["local"].run(run, PlainLog()).status == "finished", (run / "runs/train.log").read_text()[-2000:]
    return run


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(2, 66)[None]).logits.float()


def test_a_merged_model_is_what_was_trained(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = build_model(tmp_path / "tiny")
    run = trained(tmp_path, base)
    found = deploy(run, "merged", tmp_path / "out")
    assert found.merge is not None
    assert found.merge.holds
    assert found.merge.tokens > 100
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tuned = AutoPeftModelForCausalLM.from_pretrained(run / "model", dtype="auto")
    assert (logits(merged) - logits(tuned)).abs().max() < 1e-4
    assert (logits(merged) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("3 plus 4?")["input_ids"] == AutoTokenizer.from_pretrained(base)("3 plus 4?")["input_ids"]
    assert tokenizer.chat_template
    assert not list(tmp_path.glob(".ftadvise-*"))


def test_a_quantised_base_is_merged_in_16_bits(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = build_model(tmp_path / "tiny")
    AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16").save_pretrained(base)
    found = deploy(trained(tmp_path, base, "qlora", quantization="nf4-dq"), "merged", tmp_path / "out")
    assert found.merge is not None
    assert found.merge.holds
    assert found.merge.dtype == "bfloat16"
    assert any("trained over the base in nf4-dq" in note for note in found.notes)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.bfloat16"}
    assert not any("lora" in name or "quant" in name for name in weights)


def test_a_whole_model_is_taken_as_it_is(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = trained(tmp_path, build_model(tmp_path / "tiny"), "full")
    assert deploy(run, "merged", tmp_path / "out").merge is None
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "out", run / "model"))
    assert (logits(one) == logits(other)).all()


def test_the_methods_are_all_that_have_weights_to_merge() -> None:
    assert len(MERGED) == 14
    assert set(MERGED) <= set(CELLS)


@pytest.mark.parametrize("method", MERGED)
def test_every_adapter_merges(method: str, tmp_path: Path) -> None:
    """Of random weights, far from those that it starts with."""
    import sys

    import torch
    from peft import get_peft_config, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = build_model(tmp_path / "tiny")
    plan = tiny_plan(base, method, **CELLS[method])
    values = peft_config(plan, resolve_model(str(base)))
    assert values is not None
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), get_peft_config(values))
    before = logits(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    assert (logits(model) - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    found = merge(sys.executable, str(base), tmp_path / "adapter", tmp_path / "out", TEXTS, parameters=90_000)
    assert found.holds, found
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(merged) - logits(model)).abs().max() < 1e-3


def test_llamafactorys_result_is_merged_in_its_own_environment(llamafactory_python: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = build_model(tmp_path / "tiny")
    run = write_llamafactory(tmp_path / "run", base, "plain", {"max_steps": 2})
    write_general_text(run / "data", None)
    assert launchers()["local"].run(run, PlainLog(), python=llamafactory_python).status == "finished"
    assert any('"general"' in line for line in (run / "runs" / "metrics.jsonl").read_text().splitlines())
    found = deploy(run, "merged", tmp_path / "out", tools=Tools(python=llamafactory_python))
    assert found.merge is not None
    assert found.merge.holds
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.fixture
def llama_cpp() -> Path:
    """llama.cpp's sources; the source package of llama-cpp-python carries them in vendor/llama.cpp."""
    if VARIABLE not in os.environ:
        pytest.skip(f"no llama.cpp here: {VARIABLE}")
    return Path(os.environ[VARIABLE])


@pytest.mark.parametrize("kind", ["auto", "f32", "q8_0"])
def test_a_gguf_file_is_what_was_trained(kind: Any, llama_cpp: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    # The converter knows tokenizers by what they make of a text: this is a real one.
    tokenizer = AutoTokenizer.from_pretrained(llama_cpp / "models", gguf_file="ggml-vocab-gpt-2.gguf")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    base = tmp_path / "tiny"
    tokenizer.save_pretrained(base)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(base)
    run = trained(tmp_path, base, max_steps=2)
    deployed = deploy(run, "gguf", tmp_path / "out", tools=Tools(gguf_type=kind))
    assert deployed.files == ("README.md", "model.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype="float32")
    deploy(run, "merged", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    difference = (logits(read) - logits(merged)).abs().max()
    assert difference < {"auto": 0.02, "f32": 1e-4, "q8_0": 0.1}[kind]
    header = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert header["library_name"] == "gguf"
    assert json.loads((run / "plan.json").read_text())["model"]
