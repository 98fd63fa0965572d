"""LLaMA-Factory's project, without LLaMA-Factory: tests/golden/llamafactory_arguments.json holds what it accepts."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.emit import Source, emit
from advisor.emit.llamafactory_config import FINETUNING_TYPES, templates
from advisor.emit.llamafactory_rows import adapt_row
from estimators.methods import methods
from profiles.errors import UnsupportedError
from profiles.families import describe_model
from profiles.plan import Plan
from profiles.platform import load_platforms

ACCEPTED: dict[str, dict[str, list[Any]]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "llamafactory_arguments.json").read_text()
)["arguments"]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 512,
}
MODEL = describe_model(CONFIG, "tiny")
CHATS = Source(model_ref="org/tiny", conversational=True)
PLAIN = Source(model_ref="org/tiny")
TEXTS = Source(model_ref="org/tiny", form="text")

CELLS = [
    *[(method, "bf16") for method in sorted(FINETUNING_TYPES) if method != "qlora"],
    *[("qlora", quantization) for quantization in ("nf4-dq", "nf4", "fp4")],
    *[(method, "int8") for method in ("lora", "oft", "dora", "rslora", "loraplus")],
    *[(method, "nf4-dq") for method in ("oft", "dora")],
    *[("full", quantization) for quantization in ("fp16", "fp32")],
]


def plan(method: str = "lora", quantization: str = "bf16", **changes: Any) -> Plan:
    values = {"model": "tiny", "platform": "llamafactory", "gpu": "rtx4090", "method": method}
    options = {"method_options": {"freeze_trainable_layers": 1}} if method == "freeze" else {}
    return Plan.model_validate({**values, "quantization": quantization, **options, **changes})


def arguments(plan: Plan, source: Source = CHATS, model: Any = MODEL) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(emit(plan, model, source).files["train.yaml"])
    return loaded


def test_reentrant_checkpoints_are_its_own_choice_unless_asked() -> None:
    assert "use_reentrant_gc" not in arguments(plan())
    assert arguments(plan(reentrant=False))["use_reentrant_gc"] is False


def check(found: dict[str, Any]) -> None:
    """Every key is a field, and its value one of the field's type or choices."""
    for key, value in found.items():
        field = ACCEPTED[key]
        if value in field.get("choices", ()):
            continue
        allowed = set(field.get("types", ()))
        assert type(value).__name__ in allowed or (type(value) is int and "float" in allowed), (key, value, field)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"gradient_checkpointing": "none"},
    {"gradient_checkpointing": "unsloth"},
    *[{"attention": attention} for attention in ("sdpa", "eager", "flash_attention_2")],
    *[{"n_gpus": 2, "sharding": sharding} for sharding in ("ddp", "fsdp2", "zero1", "zero2", "zero3")],
    {"n_gpus": 2, "sharding": "zero3", "offload_optimizer": True, "offload_parameters": True},
    {"optimizer": "adamw_8bit"},
    {"optimizer": "muon"},
    {"packing": True, "early_stopping_patience": 3, "max_steps": 50, "learning_rate": 3e-5},
    {"gpu": "cpu"},
    {"gpu": "t4", "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
]


@pytest.mark.thorough
def test_every_key_and_value_is_one_that_llamafactory_has() -> None:
    seen = refused = 0
    for method, quantization in CELLS:
        for changes in VARIANTS:
            for source in (CHATS, PLAIN, TEXTS, Source(model_ref="x", form="messages", held_out=False)):
                try:
                    check(arguments(plan(method, quantization, **changes), source))
                    seen += 1
                except UnsupportedError:
                    refused += 1
    assert seen >= 900, (seen, refused)
    assert refused < seen


def test_the_check_sees_what_llamafactory_would_refuse() -> None:
    for wrong in ({"target_r": 8}, {"learning_rate": "2e-4"}, {"flash_attn": "flex"}, {"lora_rank": 8.5}):
        with pytest.raises((KeyError, AssertionError)):
            check(wrong)


def test_methods_are_emitted_or_refused_with_what_it_knows() -> None:
    assert {method for method, _ in CELLS} == set(FINETUNING_TYPES)
    assert len(FINETUNING_TYPES) == 12
    others = sorted(set(methods()) - set(FINETUNING_TYPES))
    assert len(others) >= 10
    for name in others:
        options = {"num_expand": 1} if name == "llama_pro" else {}
        wanted = plan(name, "fp32", method_options=options, gradient_checkpointing="none")
        with pytest.raises(UnsupportedError, match=r"lora, oft, freeze and full|no bias"):
            emit(wanted, MODEL, CHATS)


WRITTEN = {
    "lora": {"finetuning_type": "lora", "lora_target": "all", "lora_rank": 16, "lora_alpha": 32},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "lora_alpha": 16},
    "loraplus": {"loraplus_lr_ratio": 16.0},
    "pissa": {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True},
    "oft": {"finetuning_type": "oft", "oft_block_size": 32, "oft_rank": 0, "lora_target": "all"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "full": {"finetuning_type": "full"},
    "galore": {"finetuning_type": "full", "use_galore": True, "galore_rank": 16, "optim": "adamw_torch"},
    "apollo": {"finetuning_type": "full", "use_apollo": True, "apollo_rank": 16, "optim": "adamw_torch"},
    "badam": {"finetuning_type": "full", "use_badam": True},
}


@pytest.mark.parametrize("method", WRITTEN)
def test_a_method_in_llamafactorys_words(method: str) -> None:
    found = arguments(plan(method))
    assert {key: found.get(key) for key in WRITTEN[method]} == WRITTEN[method]


@pytest.mark.parametrize(
    ("quantization", "written"),
    [
        ("nf4-dq", {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": True}),
        ("nf4", {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": False}),
        ("fp4", {"quantization_bit": 4, "quantization_type": "fp4", "double_quantization": False}),
        ("int8", {"quantization_bit": 8}),
    ],
)
def test_a_quantised_base(quantization: str, written: dict[str, Any]) -> None:
    found = arguments(plan("lora" if quantization == "int8" else "qlora", quantization))
    assert {key: value for key, value in found.items() if "quantization" in key} == written
    requirements = emit(plan("oft", quantization), MODEL, CHATS).files["requirements.txt"]
    assert "bitsandbytes==" in requirements  # LLaMA-Factory does not depend on it


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, {"bf16": True}),
        ({"quantization": "fp16", "method": "full"}, {"fp16": True}),
        ({"quantization": "nf4-dq", "gpu": None}, {"bf16": True}),
        ({"quantization": "fp32", "method": "full"}, {}),
        ({"mixed_precision": False}, {}),
        ({"gpu": "cpu"}, {"bf16": True, "use_cpu": True}),
        ({"quantization": "nf4-dq", "gpu": "cpu"}, {"use_cpu": True}),
    ],
)
def test_precision_is_always_said_since_llamafactory_chooses_none(changes: dict[str, Any], flags: Any) -> None:
    found = arguments(plan(**changes))
    assert {key: found[key] for key in ("bf16", "fp16", "use_cpu") if key in found} == flags


def test_a_quantised_base_is_computed_in_the_dtype_of_the_checkpoint() -> None:
    stored = describe_model({**CONFIG, "torch_dtype": "float16"}, "tiny")
    assert arguments(plan("qlora", "nf4-dq", gpu="t4"), model=stored)["fp16"] is True
    for model, card in ((MODEL, "t4"), (stored, "rtx4090")):
        with pytest.raises(UnsupportedError, match="as it is stored"):
            emit(plan("qlora", "nf4-dq", gpu=card), model, CHATS)


def test_checkpointing_is_always_said_since_it_is_on_by_itself() -> None:
    assert arguments(plan(gradient_checkpointing="none"))["disable_gradient_checkpointing"] is True
    assert arguments(plan(gradient_checkpointing="full"))["disable_gradient_checkpointing"] is False
    assert arguments(plan(gradient_checkpointing="unsloth"))["use_unsloth_gc"] is True


def test_packing_is_always_said_since_pretraining_packs_by_itself() -> None:
    assert arguments(plan(task="pretrain"), TEXTS)["packing"] is False
    packed = arguments(plan(packing=True))
    assert packed["packing"] is packed["neat_packing"] is True
    assert "neat_packing" not in arguments(plan(packing=True), TEXTS)


def test_strategies_stay_texts_and_rates_numbers() -> None:
    text = emit(plan(learning_rate=2e-4), MODEL, CHATS.replace(held_out=False)).files["train.yaml"]
    assert "eval_strategy: 'no'" in text
    assert yaml.safe_load(text)["learning_rate"] == 2e-4
    assert "1.0e-05" in emit(plan("full"), MODEL, CHATS).files["train.yaml"]


@pytest.mark.parametrize(
    ("ref", "template"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("/models/Mistral-7B-Instruct-v0.3", "mistral"),
        ("meta-llama/Llama-3.1-8B", None),  # the tokenizer's own, if it has one
        ("me/my-own", None),
    ],
)
def test_the_chat_template_is_the_models(ref: str, template: str | None) -> None:
    assert arguments(plan(), Source(model_ref=ref, conversational=True))["template"] == template
    assert arguments(plan(), Source(model_ref=ref))["template"] == "empty"
    assert len(templates()) > 250


def test_targets_are_named_where_all_would_miss_or_add_some() -> None:
    gpt2 = describe_model(
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 259, "n_positions": 512}, "gpt2"
    )
    neox = describe_model({**CONFIG, "model_type": "gpt_neox"}, "neox")
    assert arguments(plan(), model=gpt2)["lora_target"] == "c_attn,c_fc,c_proj"
    assert arguments(plan(), model=neox)["lora_target"] == "dense,dense_4h_to_h,dense_h_to_4h,query_key_value"
    assert arguments(plan(target_modules=["v_proj", "q_proj"]))["lora_target"] == "v_proj,q_proj"
    with pytest.raises(UnsupportedError, match="Conv1D"):
        emit(plan("galore"), gpt2, CHATS)


TURN = [{"role": "user", "content": "1+1?"}]
ANSWER = [{"role": "assistant", "content": "2"}]
ROWS = {
    "plain": ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
    "prompt and completion": ({"prompt": TURN, "completion": ANSWER}, {"messages": TURN + ANSWER}),
    "chat": ({"messages": [{"role": "system", "content": "s"}, *TURN, *ANSWER]}, None),
    "preference": (
        {"prompt": TURN, "chosen": ANSWER, "rejected": [{"role": "assistant", "content": "3"}]},
        {"messages": TURN, "chosen": ANSWER[0], "rejected": {"role": "assistant", "content": "3"}},
    ),
    "label": ({"prompt": TURN, "completion": ANSWER, "label": False}, {"messages": TURN + ANSWER, "label": False}),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_conversation_becomes_one_list(case: str) -> None:
    row, expected = ROWS[case]
    assert adapt_row(row) == (expected or row)


LEFT_OUT = {
    "two questions": {"messages": [*TURN, *TURN, *ANSWER]},
    "no answer": {"messages": [*TURN, *ANSWER, *TURN]},
    "two answers": {"prompt": TURN, "completion": [*ANSWER, *TURN, *ANSWER]},
    "tools": {"messages": TURN + ANSWER, "tools": "[]"},
    "a call": {"messages": [*TURN, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
    "only a system turn": {"messages": [{"role": "system", "content": "s"}]},
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_llamafactory_would_silently_leave_out_is_an_error(case: str) -> None:
    with pytest.raises(UnsupportedError):
        adapt_row(LEFT_OUT[case])


def test_the_data_are_described_as_they_are_written() -> None:
    chat = json.loads(emit(plan(), MODEL, CHATS).files["data/dataset_info.json"])
    assert set(chat) == {"train", "eval"}
    assert chat["train"]["columns"] == {"messages": "messages"}
    assert chat["train"]["tags"]["role_tag"] == "role"
    assert arguments(plan())["mask_history"] is True  # a completion is one answer, not all before it
    assert "mask_history" not in arguments(plan(), Source(model_ref="x", form="messages"))
    pairs = Source(model_ref="x", form="preference", conversational=True, held_out=False)
    found = emit(plan(task="dpo"), MODEL, pairs)
    assert json.loads(found.files["data/dataset_info.json"])["train"]["ranking"] is True
    written = yaml.safe_load(found.files["train.yaml"])
    assert (written["stage"], written["pref_loss"]) == ("dpo", "sigmoid")
    assert arguments(plan(task="orpo"), pairs)["pref_loss"] == "orpo"
    assert arguments(plan(task="kto"), pairs.replace(form="unpaired-preference"))["stage"] == "kto"


SHARDED = {"ddp": "torch.distributed.run", "fsdp2": "accelerate.commands.launch", "zero3": "torch.distributed.run"}


@pytest.mark.parametrize("sharding", SHARDED)
def test_several_cards_are_launched_as_llamafactory_documents(sharding: str) -> None:
    emission = emit(plan(n_gpus=4, sharding=sharding), MODEL, CHATS)
    assert SHARDED[sharding] in emission.command
    assert ("accelerate.yaml" in emission.files) is (sharding == "fsdp2")
    assert ("deepspeed.json" in emission.files) is (sharding == "zero3")
    assert ("deepspeed==" in emission.files["requirements.txt"]) is (sharding == "zero3")
    found = yaml.safe_load(emission.files["train.yaml"])
    assert found.get("deepspeed") == ("deepspeed.json" if sharding == "zero3" else None)
    if sharding == "ddp":
        assert found["ddp_find_unused_parameters"] is False


def test_a_reward_model_stops_early_without_its_best_checkpoint() -> None:
    """Its parser: "RM and PPO stages do not support `load_best_model_at_end`"."""
    pairs = Source(model_ref="x", form="preference", conversational=True)
    found = yaml.safe_load(emit(plan(task="reward", early_stopping_patience=3), MODEL, pairs).files["train.yaml"])
    assert "load_best_model_at_end" not in found
    assert (found["early_stopping_steps"], found["metric_for_best_model"]) == (3, "eval_loss")


def test_deepspeed_is_told_the_stage_and_the_offload() -> None:
    whole = plan(n_gpus=4, sharding="zero3", offload_optimizer=True, offload_parameters=True)
    zero = json.loads(emit(whole, MODEL, CHATS).files["deepspeed.json"])["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"
    first = json.loads(emit(plan(n_gpus=4, sharding="zero1"), MODEL, CHATS).files["deepspeed.json"])
    assert first["zero_optimization"] == {"stage": 1}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "full over int8": ({"method": "full", "quantization": "int8"}, "int8"),
    "pissa over 4 bits": ({"method": "pissa", "quantization": "nf4-dq"}, "float weights"),
    "pissa sharded": ({"method": "pissa", "n_gpus": 2, "sharding": "zero3"}, "whole weights"),
    "weights in another dtype": ({"quantization": "fp32"}, "as they are stored"),
    "computing in another half": ({"compute_dtype": "fp16"}, "computed in bf16"),
    "full in pure bf16": ({"method": "full", "mixed_precision": False}, "autocast"),
    "adapters in bf16": ({"adapter_dtype": "bf16"}, "fp32"),
    "k-bit preparation": ({"quantization": "nf4-dq", "kbit_prepared": True}, "kbit"),
    "a fused loss": ({"loss_kernel": "fused"}, "all logits"),
    "Liger without a GPU": ({"loss_kernel": "chunked", "gpu": "cpu"}, "need a GPU"),
    "kept outputs": ({"keep_outputs": True}, "outputs"),
    "kernels of Liger one by one": ({"fused_ops": ("norm",)}, "fused_ops"),
    "a KV cache": ({"use_cache": True}, "KV cache"),
    "gradients kept": ({"zero_grad_set_to_none": False}, "zero_grad"),
    "checkpoints in main memory without a GPU": ({"gpu": "cpu", "gradient_checkpointing": "unsloth"}, "GPU"),
    "an optimizer without a name": ({"optimizer": "adamw_torch_forloop"}, "no optim"),
    "muon and LoRA+": ({"method": "loraplus", "optimizer": "muon"}, "leave use_muon aside"),
    "muon on shards": ({"method": "full", "optimizer": "muon", "n_gpus": 2, "sharding": "fsdp2"}, "whole matrices"),
    "galore on shards": ({"method": "galore", "n_gpus": 2, "sharding": "zero2"}, "does not run with zero2"),
    "several cards, no sharding": ({"n_gpus": 2}, "sharding"),
    "int8 sharded": ({"n_gpus": 2, "sharding": "fsdp2", "quantization": "int8"}, "int8"),
    "a fraction of alpha": ({"lora_alpha": 2.5}, "whole number"),
    "an unknown option": ({"method_options": {"nonsense": 1}}, "nonsense"),
    "shared blocks of OFT": ({"method": "oft", "method_options": {"block_share": True}}, "block_share"),
    "another task": ({"task": "classification"}, "classification"),
    "stopping early without evaluation": ({"early_stopping_patience": 2, "eval_fraction": 0.0}, "held-out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_the_reason(case: str) -> None:
    changes, reason = REFUSED[case]
    wanted = plan(**changes)
    with pytest.raises(UnsupportedError) as error:
        emit(wanted, MODEL, CHATS.replace(held_out=wanted.eval_fraction > 0))
    assert reason in error.value.message


@pytest.mark.parametrize("name", ["q_proj,lm_head", " q_proj", "all"])
def test_a_module_name_that_its_lists_cannot_hold_is_refused(name: str) -> None:
    odd = MODEL.replace(layers=tuple(_with_module(group, name) for group in MODEL.layers))
    with pytest.raises(UnsupportedError, match="commas between"):
        emit(plan(target_modules=[name]), odd, CHATS)


def _with_module(group: Any, name: str) -> Any:
    linears = group.block.linears
    return group.replace(block=group.block.replace(linears=(linears[0].replace(name=name), *linears[1:])))


hostile = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.sampled_from(["'\"; import os #", "${oc.env:HOME}", "!!python/object/apply:os.system ['id']", "a\nb: c", "no",
                     "\u2028\u0085\ufeff", "*alias", "---\n...", "2e-4", "null", "# no comment", "../../x"]),
)  # fmt: skip


@given(name=hostile)
@settings(max_examples=150, deadline=None)
@pytest.mark.thorough
def test_a_hostile_name_stays_a_value(name: str) -> None:
    reference = emit(plan(), MODEL, CHATS)
    odd = emit(plan(), MODEL, CHATS.replace(model_ref=name))
    loaded = yaml.safe_load(odd.files["train.yaml"])
    assert loaded["model_name_or_path"] == name
    assert loaded.keys() == yaml.safe_load(reference.files["train.yaml"]).keys()
    assert json.loads(odd.files["plan.json"])["source"]["model_ref"] == name
    assert {f for f in odd.files if odd.files[f] != reference.files[f]} <= {"train.yaml", "README.md", "plan.json"}
    assert odd.command == reference.command


def test_the_project_is_whole_and_its_scripts_import_nothing_of_ours() -> None:
    files = emit(plan(), MODEL, CHATS).files
    assert set(files) == {
        "train.py", "general.py", "progress.py", "train.yaml", "data/dataset_info.json", "requirements.txt",
        "README.md", "plan.json",
    }  # fmt: skip
    assert "`train.yaml`" in files["README.md"]
    for name in ("train.py", "general.py", "progress.py"):
        for node in ast.walk(ast.parse(files[name])):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("advisor", "estimators", "profiles")


def test_packages_are_pinned_and_only_those_that_the_plan_needs() -> None:
    def needed(**changes: Any) -> set[str]:
        return set(emit(plan(**changes), MODEL, CHATS).files["requirements.txt"].split())

    always = {f"{n}=={v}" for n, v in load_platforms()["llamafactory"].versions.items() if n != "bitsandbytes"}
    assert needed() == always
    assert needed(method="galore") - always == {"galore-torch==1.0"}
    assert needed(method="apollo") - always == {"apollo-torch==1.0.3"}
    assert needed(method="badam") - always == {"badam==1.4"}
    assert {name.split("==")[0] for name in needed(optimizer="paged_adamw_8bit") - always} == {"bitsandbytes"}
    assert needed(loss_kernel="chunked") - always == {"liger-kernel==0.8.5"}


def test_a_loss_without_logits_is_ligers() -> None:
    found = arguments(plan(loss_kernel="chunked"))
    check(found)
    assert found["enable_liger_kernel"] is True
    assert "enable_liger_kernel" not in arguments(plan())


def test_one_card_that_offloads_is_started_by_torchrun() -> None:
    emission = emit(plan(sharding="zero3", offload_optimizer=True, offload_parameters=True), MODEL, CHATS)
    assert "torch.distributed.run" in emission.command
    assert "deepspeed.json" in emission.files
