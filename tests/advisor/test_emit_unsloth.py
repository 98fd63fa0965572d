"""Unsloth's projects against the recorded signatures; test_unsloth_installed.py holds them to the package itself."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from advisor.emit import Source, emit
from advisor.emit.unsloth import METHODS
from estimators.methods import methods
from profiles.errors import AdviseError, UnsupportedError
from profiles.families import describe_model
from profiles.plan import Plan

KNOWN = json.loads((Path(__file__).parents[1] / "golden" / "unsloth_signatures.json").read_text())
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 1024,
}
MODEL = describe_model(LLAMA, "tiny")
MIXTURE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SOURCE = Source(model_ref="org/tiny")

CELLS = [
    *[("lora", stored) for stored in ("bf16", "fp16", "int8")],
    ("qlora", "nf4-dq"),
    ("dora", "bf16"),
    ("dora", "nf4-dq"),
    ("rslora", "int8"),
    ("pissa", "bf16"),
    ("full", "bf16"),
]


def plan(method: str = "lora", quantization: str | None = None, **changes: Any) -> Plan:
    quantization = quantization or ("nf4-dq" if method == "qlora" else "bf16")
    values = {"model": "tiny", "gpu": "rtx4090", "platform": "unsloth", "method": method, "seq_len": 512}
    return Plan.model_validate({**values, "quantization": quantization, **changes})


def config(plan: Plan, model: Any = MODEL) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(emit(plan, model, SOURCE).files["config.yaml"])
    return loaded


def test_the_cells_cover_all_methods() -> None:
    assert {method for method, _ in CELLS} == METHODS
    refused = 0
    for name in sorted(set(methods()) - METHODS):
        options = {"num_expand": 1} if name == "llama_pro" else {}
        with pytest.raises(AdviseError):
            emit(plan(name, method_options=options), MODEL, SOURCE)
        refused += 1
    assert refused == len(methods()) - 6


@pytest.mark.parametrize(("method", "quantization"), CELLS)
def test_every_keyword_is_one_of_the_installed_package(method: str, quantization: str) -> None:
    found = config(plan(method, quantization))
    assert set(found["model"]) <= set(KNOWN["from_pretrained"])
    assert set(found["training"]) <= set(KNOWN["SFTConfig"])
    assert found["training"]["optim"] in KNOWN["optim"]
    if method == "full":
        assert found["adapter"] is None
    else:
        own = set(found["adapter"]) - set(KNOWN["get_peft_model"])
        assert own <= set(KNOWN["LoraConfig"])  # handed on to it
        assert own == ({"use_dora"} if method == "dora" else set())


@pytest.mark.parametrize(("method", "quantization"), CELLS)
def test_the_base_is_loaded_one_way(method: str, quantization: str) -> None:
    flags = config(plan(method, quantization))["model"]
    chosen = [key for key in ("load_in_4bit", "load_in_8bit", "load_in_16bit", "full_finetuning") if flags[key]]
    ways = {"nf4-dq": "load_in_4bit", "int8": "load_in_8bit"}
    assert chosen == ["full_finetuning" if method == "full" else ways.get(quantization, "load_in_16bit")]


def test_the_plan_is_in_the_config() -> None:
    wanted = plan(
        "rslora", lora_rank=6, lora_alpha=9, lora_dropout=0.1, target_modules=("q_proj",), seed=7, seq_len=700,
        micro_batch_size=3, gradient_accumulation_steps=5, gradient_checkpointing="unsloth", optimizer="adamw_8bit",
        learning_rate=3e-4, early_stopping_patience=2, expandable_segments=True, packing=True,
    )  # fmt: skip
    found = config(wanted)
    assert found["model"]["max_seq_length"] == found["training"]["max_length"] == 700
    assert found["adapter"] == {
        "target_modules": ["q_proj"], "r": 6, "lora_alpha": 9, "lora_dropout": 0.1, "use_rslora": True,
        "use_gradient_checkpointing": "unsloth", "random_state": 7,
    }  # fmt: skip
    training = found["training"]
    assert training["per_device_train_batch_size"] == training["per_device_eval_batch_size"] == 3
    assert training["gradient_accumulation_steps"] == 5
    assert training["gradient_checkpointing"] is training["packing"] is training["padding_free"] is True
    assert training["load_best_model_at_end"] is True
    assert (training["optim"], training["learning_rate"], training["seed"]) == ("adamw_8bit", 3e-4, 7)
    assert (found["precision"], found["early_stopping_patience"], found["expandable_segments"]) == ("bf16", 2, True)


@pytest.mark.parametrize(("named", "value"), [("none", False), ("full", True), ("unsloth", "unsloth")])
def test_checkpointing_is_said_in_both_places(named: str, value: bool | str) -> None:
    found = config(plan(gradient_checkpointing=named))
    assert found["model"]["use_gradient_checkpointing"] == found["adapter"]["use_gradient_checkpointing"] == value
    assert found["training"]["gradient_checkpointing"] is (value is not False)


def test_experts_get_no_adapters_that_the_plan_does_not_have() -> None:
    mixture = describe_model({**LLAMA, **MIXTURE}, "mixture")
    found = config(plan(), mixture)
    assert found["adapter"]["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert found["adapter"]["target_parameters"] == []
    assert "target_parameters" not in config(plan())["adapter"]


REFUSED = {
    "sharded weights": ({"n_gpus": 2, "sharding": "fsdp2"}, "fsdp2"),
    "deepspeed": ({"n_gpus": 2, "sharding": "zero2"}, "zero2"),
    "several cards, no sharding": ({"n_gpus": 2}, "sharding"),
    "fp32 weights": ({"quantization": "fp32"}, "16-bit, 8-bit and 4-bit"),
    "single quantization": ({"method": "qlora", "quantization": "nf4"}, "hard-coded"),
    "fp4": ({"method": "qlora", "quantization": "fp4"}, "hard-coded"),
    "another half": ({"compute_dtype": "fp16"}, "16-bit type"),
    "fp32 compute": ({"method": "qlora", "quantization": "nf4-dq", "compute_dtype": "fp32"}, "16-bit type"),
    "full in fp16": ({"method": "full", "quantization": "fp16"}, "fp32 weights"),
    "no autocast": ({"mixed_precision": False}, "autocast"),
    "full with autocast": ({"method": "full", "mixed_precision": True}, "autocast"),
    "bf16 adapters": ({"adapter_dtype": "bf16"}, "adapters in fp32"),
    "k-bit preparation": ({"quantization": "int8", "kbit_prepared": True}, "its own way"),
    "attention by name": ({"attention": "sdpa"}, "attention"),
    "short offloading": ({"gradient_checkpointing": "unsloth", "seq_len": 511}, "512"),
    "loss kernel": ({"loss_kernel": "full"}, "chunks"),
    "cache": ({"use_cache": True}, "cache"),
    "kept outputs": ({"keep_outputs": True}, "outputs"),
    "kernels of Liger one by one": ({"fused_ops": ("norm",)}, "fused_ops"),
    "checkpoints that are not reentrant": ({"reentrant": False}, "reentrant"),
    "gradients kept": ({"zero_grad_set_to_none": False}, "zero_grad"),
    "optimizer": ({"optimizer": "muon"}, "muon"),
    "packed compiled layers": ({"quantization": "int8", "packing": True}, "packing"),
    "unknown option": ({"method_options": {"nonsense": 1}}, "nonsense"),
    "unchecked start": ({"method_options": {"init_lora_weights": "eva"}}, "eva"),
    "pissa over int8": ({"quantization": "int8", "method_options": {"init_lora_weights": "pissa"}}, "float weights"),
    "adalora": ({"method": "adalora"}, "LoraConfig only"),
    "prompt": ({"method": "prompt"}, "no mention"),
    "another task": ({"task": "dpo"}, "dpo"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_the_reason(case: str) -> None:
    changes, reason = REFUSED[case]
    with pytest.raises(UnsupportedError) as error:
        emit(plan(**changes), MODEL, SOURCE)
    assert reason in error.value.message


def test_packing_is_refused_where_unsloth_would_ignore_it() -> None:
    assert config(plan(packing=True))["training"]["packing"] is True
    capped = describe_model({**LLAMA, "model_type": "gemma2", "head_dim": 16}, "capped")
    with pytest.raises(UnsupportedError, match="packing"):
        emit(plan(packing=True), capped, SOURCE)


@pytest.mark.parametrize(
    ("config", "linear"),
    [
        ({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 32}, "attn"),
        ({**LLAMA, "model_type": "opt", "ffn_dim": 96}, "fc1"),
    ],
)
def test_linears_that_unsloth_would_pass_over_are_refused(config: dict[str, Any], linear: str) -> None:
    model = describe_model(config, "old")
    with pytest.raises(UnsupportedError, match=f"finds no {linear}"):
        emit(plan(), model, SOURCE)
    assert emit(plan("full"), model, SOURCE).files


def test_a_target_that_shares_its_last_name_is_refused() -> None:
    shared = {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]}
    mixture = describe_model({**LLAMA, **MIXTURE, **shared}, "mixture")
    assert config(plan(target_modules=("self_attn.q_proj",)), mixture)["adapter"]["target_modules"] == ["q_proj"]
    with pytest.raises(UnsupportedError, match="last name, and gate_proj"):
        emit(plan(target_modules=("shared_expert.gate_proj",)), mixture, SOURCE)


def test_two_cards_are_launched_by_accelerate() -> None:
    emission = emit(plan(n_gpus=2, sharding="ddp"), MODEL, SOURCE)
    assert yaml.safe_load(emission.files["accelerate.yaml"])["distributed_type"] == "MULTI_GPU"
    assert "accelerate.commands.launch" in emission.command


def test_the_project_pins_its_versions_and_says_what_was_run() -> None:
    files = emit(plan(), MODEL, SOURCE).files
    scripts = {"train.py", "general.py", "precision.py", "progress.py", "rows.py", "running.py"}
    assert set(files) == {*scripts, "config.yaml", "requirements.txt", "README.md", "plan.json"}
    assert "unsloth==2026.10.7\nunsloth_zoo==2026.10.7\n" in files["requirements.txt"]
    for words in ("What was run", "What was not run", "AGPL-3.0", "LGPL-3.0"):
        assert words in files["README.md"]


def test_unsloth_is_imported_before_what_it_rewrites() -> None:
    body = ast.parse(emit(plan(), MODEL, SOURCE).files["train.py"]).body
    names = [
        n.module if isinstance(n, ast.ImportFrom) else n.names[0].name
        for n in body
        if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    first = names.index("unsloth")
    assert not {"torch", "transformers", "trl", "precision", "progress", "rows", "running"} & set(names[:first])
